"""llama.cpp itself, in its server as xllamacpp brings it built: base and adapter, and merged files, give jpo's
log-likelihoods and text.

Its server tells the log-likelihood of the token that it chose, before sampling changed anything. A text is read token
by token: each request forces the next one by a bias, and the server keeps what it has read. It holds back a token that
ends within a character, so that the texts are ASCII.
"""

import importlib.util
import json
import os
import urllib.request

import numpy as np
import pytest
from export.adapters import family_model, random_adapter
from export.test_merge import GGUF

import jpo
from jpo import export
from jpo.errors import JpoError
from jpo.formats import load_checkpoint

if os.environ.get("JPO_REQUIRE_PARITY") != "1" and importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("llama.cpp needs xllamacpp (pip install '.[parity]')", allow_module_level=True)
PROMPTS = [
    "Give three tips for staying healthy.", "What is the capital of France?", "Write a haiku about the sea.", "2, 4, 8, 16,",
    "Once upon a time", "Explain how rain forms.", "def fibonacci(n):", "My favourite food is",
]  # fmt: skip
# its server adds up the 49,152 terms of a softmax one by one in float32, which costs 1e-4 a token of SmolLM2
SUMMED = 1e-4
# jpo's mathematics and llama.cpp's differ: it has no window in Phi-3; its GELU is a table of float16
SKIPPED, LOOSE = ("phi3-long",), {"gemma2": 1e-4, "gemma3": 1e-3, "gpt2": 1e-5}


class Llama:
    """One file in llama.cpp, keys and values in float32, without flash attention. One thread: its threads spin."""

    def __init__(self, path, lora=None):
        import xllamacpp

        self.parameters = parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 256, 1, False, 0
        parameters.swa_full = True  # keep what has left the windows: the next text may begin as this one did
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora is not None:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self.server = xllamacpp.Server(parameters)

    def next_token(self, ids, **options):
        """(token, its log-likelihood) behind ids."""
        request = {"prompt": [*map(int, ids)], "n_predict": 1, "n_probs": 1, "temperature": 0, "ignore_eos": False}
        answer = self.server.handle_completions({**request, "cache_prompt": True, **options})
        chosen = answer["choices"][0]["logprobs"]["content"][0]
        return chosen["id"], chosen["logprob"]

    def logps(self, pairs):
        """(N,) log-likelihoods of every token but the first of (prompt, response)."""
        found = []
        for prompt, response in pairs:
            ids, total = [*map(int, prompt), *map(int, response)], 0.0
            for place in range(1, len(ids)):
                token, logp = self.next_token(ids[:place], logit_bias=[[ids[place], 1e6]])
                assert token == ids[place]
                total += logp
            found.append(total)
        return np.array(found)

    def greedy(self, ids, count):
        """The `count` most likely tokens behind `ids`, one after the other."""
        ids = list(map(int, ids))
        for _ in range(count):
            ids.append(self.next_token(ids)[0])
        return ids[-count:]

    def tokenize(self, text):
        body = json.dumps({"content": text, "add_special": False}).encode()
        request = urllib.request.Request(
            self.server.listening_address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["tokens"]


def texts(lm):
    response = lm.tokenizer.encode(" It is a good question. Let us see.")
    return [(lm.tokenizer.prompt_ids(prompt), response) for prompt in PROMPTS[:3]]


@pytest.mark.parametrize("name", [name for name in GGUF if name not in SKIPPED])
def test_every_family(tmp_path, name):
    config = family_model(tmp_path / "base", name, **GGUF[name])
    patterns = {"alpha_pattern": {"down_proj": 3.5, "c_fc": 2.0}, "ranks": {"q_proj": 2, "qkv_proj": 6, "c_attn": 3}}
    random_adapter(tmp_path / "adapter", config, use_rslora=True, **patterns)
    random_adapter(tmp_path / "zero", config, lora_alpha=1e-7)
    export.merge(tmp_path / "base", tmp_path / "zero", tmp_path / "base.gguf", format="gguf", type="f32")
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged.gguf", format="gguf", type="f32")
    export.export_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "lora.gguf")
    lm, tolerance = jpo.load(str(tmp_path / "base")), LOOSE.get(name, 1e-6)
    pairs = texts(lm)
    base = lm.sequence_logps_ids(pairs, scope="joint")
    lm.load_adapter(str(tmp_path / "adapter"))
    adapted = lm.sequence_logps_ids(pairs, scope="joint")
    assert np.abs(adapted / base - 1).max() > 20 * tolerance
    np.testing.assert_allclose(Llama(tmp_path / "base.gguf").logps(pairs), base, rtol=tolerance)
    both = Llama(tmp_path / "base.gguf", tmp_path / "lora.gguf")
    np.testing.assert_allclose(both.logps(pairs), adapted, rtol=tolerance)
    np.testing.assert_allclose(Llama(tmp_path / "merged.gguf").logps(pairs), adapted, rtol=tolerance)


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


def same_text(llama, lm, prompts, count):
    ours = [found[0].token_ids for found in lm.generate(prompts, temperature=0.0, max_new_tokens=count)]
    for prompt, ids in zip(prompts, ours, strict=True):
        assert llama.greedy(lm.tokenizer.prompt_ids(prompt), len(ids)) == list(ids), prompt


def test_smollm2_base_and_adapter(smollm2):
    """The adapter file on the float32 base, to the same text; then llama.cpp's own tokenizer on the same texts."""
    folder, lm = smollm2
    random_adapter(folder / "zero", lm.config, lora_alpha=1e-9)
    export.merge("smollm2-135m", folder / "zero", folder / "base.gguf", format="gguf", type="f32")
    export.export_adapter("smollm2-135m", folder / "adapter", folder / "lora.gguf")
    llama = Llama(folder / "base.gguf", folder / "lora.gguf")
    np.testing.assert_allclose(llama.logps(texts(lm)), lm.sequence_logps_ids(texts(lm), scope="joint"), rtol=SUMMED)
    same_text(llama, lm, PROMPTS, 16)
    for prompt in PROMPTS:
        assert llama.tokenize(prompt) == lm.tokenizer.encode(prompt)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f32", SUMMED), ("f16", 2e-3), ("q8_0", 1e-2), ("q4_0", 3e-2), ("q4_k_m", 3e-2)]
)
def test_smollm2_merged(smollm2, kind, tolerance):
    """The merged file in llama.cpp and in jpo: quantized ones to llama.cpp's rounding of activations to eight bits."""
    folder, _ = smollm2
    path = folder / f"{kind}.gguf"
    export.merge("smollm2-135m", folder / "adapter", path, format="gguf", type=kind)
    lm, llama = jpo.load(str(path)), Llama(path)
    theirs, ours = llama.logps(texts(lm)), lm.sequence_logps_ids(texts(lm), scope="joint")
    print(f"{kind}: {np.abs(theirs / ours - 1).max():.1e}")
    np.testing.assert_allclose(theirs, ours, rtol=tolerance)
    if kind == "f32":
        same_text(llama, lm, PROMPTS[:2], 8)
