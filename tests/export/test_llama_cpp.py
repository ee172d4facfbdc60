"""llama.cpp itself, through llama-cpp-python: base and adapter, and merged files, give jpo's log-likelihoods and text.

Its build takes longer than a whole run of the tests, so that CI skips this file by name; by hand:
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" pip install llama-cpp-python
    python -m pytest tests/export/test_llama_cpp.py
"""

import numpy as np
import pytest
from export.adapters import family_model, random_adapter
from export.test_merge import GGUF
from reference.models import sequences

import jpo
from jpo import export
from jpo.errors import JpoError
from jpo.formats import load_checkpoint

llama_cpp = pytest.importorskip("llama_cpp")
PROMPTS = [
    "Give three tips for staying healthy.", "What is the capital of France?", "Write a haiku about the sea.", "2, 4, 8, 16,",
    "Once upon a time", "Explain how rain forms.", "def fibonacci(n):", "My favourite food is",
]  # fmt: skip
# jpo's mathematics and llama.cpp's differ: it has no window in Phi-3; its GELU is a table of float16
SKIPPED, LOOSE = ("phi3-long",), {"gemma2": 1e-4, "gemma3": 1e-3, "gpt2": 1e-5}


def opened(path, lora=None):
    """The file in llama.cpp, keys and values in float32, without flash attention. One thread: its threads spin."""
    options = {
        "n_ctx": 256,
        "n_batch": 256,
        "n_threads": 1,
        "n_threads_batch": 1,
        "type_k": 0,
        "type_v": 0,
        "flash_attn": False,
    }
    return llama_cpp.Llama(
        str(path), lora_path=None if lora is None else str(lora), logits_all=True, verbose=False, **options
    )


def logps(llama, pairs):
    """(N,) log-likelihoods of every token but the first of (prompt, response)."""
    found = []
    for prompt, response in pairs:
        ids = [*map(int, prompt), *map(int, response)]
        llama.reset()
        llama.eval(ids)
        logits = np.array(llama.scores[: len(ids)], np.float64)
        rest = logits - logits.max(1, keepdims=True)
        rest -= np.log(np.exp(rest).sum(1, keepdims=True))
        found.append(sum(rest[place, token] for place, token in enumerate(ids[1:])))
    return np.array(found)


def greedy(llama, ids, count):
    """The `count` most likely tokens behind `ids`, one after the other."""
    llama.reset()
    llama.eval(list(ids))
    found = []
    for _ in range(count):
        found.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        llama.eval(found[-1:])
    return found


@pytest.mark.parametrize("name", [name for name in GGUF if name not in SKIPPED])
def test_every_family(tmp_path, name):
    config = family_model(tmp_path / "base", name, **GGUF[name])
    patterns = {"alpha_pattern": {"down_proj": 3.5, "c_fc": 2.0}, "ranks": {"q_proj": 2, "qkv_proj": 6, "c_attn": 3}}
    random_adapter(tmp_path / "adapter", config, use_rslora=True, **patterns)
    random_adapter(tmp_path / "zero", config, lora_alpha=1e-7)
    export.merge(tmp_path / "base", tmp_path / "zero", tmp_path / "base.gguf", format="gguf", type="f32")
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged.gguf", format="gguf", type="f32")
    export.export_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "lora.gguf")
    pairs = [(list(prompt), list(response)) for prompt, response in sequences(512)]
    lm, tolerance = jpo.load(str(tmp_path / "base")), LOOSE.get(name, 1e-6)
    base = lm.sequence_logps_ids(pairs, scope="joint")
    lm.load_adapter(str(tmp_path / "adapter"))
    adapted = lm.sequence_logps_ids(pairs, scope="joint")
    assert np.abs(adapted / base - 1).max() > 20 * tolerance
    np.testing.assert_allclose(logps(opened(tmp_path / "base.gguf"), pairs), base, rtol=tolerance)
    both = opened(tmp_path / "base.gguf", tmp_path / "lora.gguf")
    np.testing.assert_allclose(logps(both, pairs), adapted, rtol=tolerance)
    np.testing.assert_allclose(logps(opened(tmp_path / "merged.gguf"), pairs), adapted, rtol=tolerance)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """(folder with an adapter, the model with it)."""
    try:
        checkpoint = load_checkpoint("smollm2-135m", check=False)
    except JpoError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("smollm2")
    random_adapter(folder / "adapter", checkpoint.config, lora_alpha=2, ranks={"q_proj": 8})
    lm = jpo.load("smollm2-135m", storage="float32")
    lm.load_adapter(str(folder / "adapter"))
    return folder, lm


def texts(lm):
    return [
        (lm.tokenizer.prompt_ids(prompt), lm.tokenizer.encode(" It is a good question. Let us see."))
        for prompt in PROMPTS
    ]


def same_text(llama, lm):
    ours = [found[0].token_ids for found in lm.generate(PROMPTS, temperature=0.0, max_new_tokens=24)]
    for prompt, ids in zip(PROMPTS, ours, strict=True):
        assert greedy(llama, lm.tokenizer.prompt_ids(prompt), len(ids)) == list(ids), prompt


def test_smollm2_base_and_adapter(smollm2):
    """The adapter file on the float32 base; then llama.cpp's own tokenizer on the same texts."""
    folder, lm = smollm2
    random_adapter(folder / "zero", lm.config, lora_alpha=1e-9)
    export.merge("smollm2-135m", folder / "zero", folder / "base.gguf", format="gguf", type="f32")
    export.export_adapter("smollm2-135m", folder / "adapter", folder / "lora.gguf")
    llama = opened(folder / "base.gguf", folder / "lora.gguf")
    np.testing.assert_allclose(logps(llama, texts(lm)), lm.sequence_logps_ids(texts(lm), scope="joint"), rtol=1e-5)
    same_text(llama, lm)
    for prompt in PROMPTS:
        assert llama.tokenize(prompt.encode(), add_bos=False) == lm.tokenizer.encode(prompt)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f32", 1e-5), ("f16", 2e-3), ("q8_0", 1e-2), ("q4_0", 3e-2), ("q4_k_m", 3e-2)]
)
def test_smollm2_merged(smollm2, kind, tolerance):
    """The merged file in llama.cpp and in jpo: quantized ones to llama.cpp's rounding of activations to eight bits."""
    folder, _ = smollm2
    path = folder / f"{kind}.gguf"
    export.merge("smollm2-135m", folder / "adapter", path, format="gguf", type=kind)
    lm, llama = jpo.load(str(path)), opened(path)
    theirs, ours = logps(llama, texts(lm)), lm.sequence_logps_ids(texts(lm), scope="joint")
    print(f"{kind}: {np.abs(theirs / ours - 1).max():.1e}")
    np.testing.assert_allclose(theirs, ours, rtol=tolerance)
    if kind == "f32":
        same_text(llama, lm)
