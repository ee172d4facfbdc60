"""Tokenizers from GGUF against llama.cpp's own vocabularies and the ids that it ships for them (.inp, .out).

They stand in the source package of llama-cpp-python. JPO_LLAMA_CPP is the path of its vendor/llama.cpp:

    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python && tar -xf llama_cpp_python-*.tar.gz
"""

import os
from pathlib import Path

import pytest

from jpo.formats.gguf import read_gguf
from jpo.formats.gguf_tokenizer import tokenizer_from_metadata

FAMILIES = ("gpt-2", "llama-bpe", "llama-spm", "qwen2", "phi-3", "gemma-4", "command-r", "refact", "starcoder", "mpt")
SEPARATOR = "\n__ggml_vocab_test__\n"


def llama_cpp() -> Path:
    """The folder of llama.cpp's sources; skipped without it, a failure where JPO_REQUIRE_PARITY forbids skips."""
    folder = os.environ.get("JPO_LLAMA_CPP")
    if folder:
        return Path(folder)
    message = "JPO_LLAMA_CPP (the path of llama-cpp-python's vendor/llama.cpp) is not set"
    if os.environ.get("JPO_REQUIRE_PARITY") == "1":
        pytest.fail(message + "; JPO_REQUIRE_PARITY=1 allows no skip", pytrace=False)
    pytest.skip(message)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_models_own_tokenizers(family):
    path = llama_cpp() / "models" / f"ggml-vocab-{family}.gguf"
    metadata = read_gguf(path).metadata
    tokenizer = tokenizer_from_metadata(str(path), metadata, len(metadata["tokenizer.ggml.tokens"]))
    texts = (path.parent / (path.name + ".inp")).read_bytes().decode("utf-8").split(SEPARATOR)
    lines = (path.parent / (path.name + ".out")).read_text().split("\n")
    assert min(len(texts), len(lines)) >= 46 and not any(line.strip() for line in lines[len(texts) :])
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text) == [int(word) for word in line.split()], text
