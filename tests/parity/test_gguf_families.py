"""Every family through llama.cpp's layout.

The same random model as a Hugging Face directory and as the GGUF file that its converter would write gives the same
log-likelihoods, tokens and configuration."""

import numpy as np
import pytest
from parity.test_model import scores
from reference.converter import LAYOUTS, convert
from reference.families import OTHER, UNTIED, configuration
from reference.models import random_values, sequences

import jpo
from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize
from jpo.formats.families import families

# those that llama.cpp's files let be told again
LLAMA3 = {"original_max_position_embeddings": 8192, "factor": 8.0}
SIX = {"num_hidden_layers": 7, "layer_types": None, "sliding_window_pattern": 6}

# case -> (a case of tests/reference/families.py, what differs from it): only what the converter writes can come back
CASES = {
    "llama": ("llama3", {"rope_scaling": None}),
    "llama3": ("llama3", {**OTHER, **UNTIED, "rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LLAMA3}}),
    "llama3-factors": ("llama3", {"attention_bias": True, "mlp_bias": True}),  # of 16 positions: unusual, so left as factors
    "mistral": ("mistral-yarn", {"rope_scaling": None}),
    "mistral-yarn": ("mistral-yarn", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-untied": ("qwen2", {**OTHER, **UNTIED}),
    "qwen3": ("qwen3", {}),
    "qwen3-untied": ("qwen3", {**OTHER, **UNTIED, "head_dim": 16}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 10}),
    "gemma3-scaled": ("gemma3-scaled", {**SIX, "attention_bias": False, "tie_word_embeddings": True, "query_pre_attn_scalar": 8}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 10}),
    "gemma2-wide": ("gemma2-plain", {"tie_word_embeddings": True, "query_pre_attn_scalar": 6, "attn_logit_softcapping": 4.0}),
    "phi3": ("phi3", {"original_max_position_embeddings": 128}),
    "phi3-beyond": ("phi3-beyond", {}),
    "phi3-long": ("phi3-long", {}),
    "granite": ("granite", {}),
    "granite-bias": ("granite-bias", {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "logits_scaling": 4.0}),
    "smollm3": ("smollm3", {}),
    "smollm3-untied": ("smollm3", {**OTHER, **UNTIED}),
    "olmo2": ("olmo2", {}),
    "olmo2-untied": ("olmo2", {**OTHER, **UNTIED}),
    "gpt2": ("gpt2", {"n_inner": 128}),
    "gpt2-untied": ("gpt2-odd", {"n_inner": 140, "scale_attn_weights": True}),
    "stablelm": ("stablelm", {"use_parallel_residual": False, "partial_rotary_factor": 0.25}),
    "stablelm-parallel": ("stablelm-parallel", {}),
    "cohere2": ("cohere2", {"num_hidden_layers": 5}),
    "cohere2-wide": ("cohere2", {**OTHER, "logit_scale": 1.5, "num_hidden_layers": 8}),
}  # fmt: skip
EPS = {"gpt2": {"layer_norm_epsilon": 1e-5}, "stablelm": {"layer_norm_eps": 1e-5}, "cohere2": {"layer_norm_eps": 1e-5}}
THETA = {"smollm3": 2e6, "gemma3_text": 1e6}


def spelled(case):
    """config.json with everything said that the converter reads from transformers' configuration."""
    name, changes = CASES[case]
    hf = configuration(name) | changes
    kind = hf["model_type"]
    hf |= EPS.get(kind, {"rms_norm_eps": 1e-6})
    if kind != "gpt2":
        hf.setdefault("rope_theta", THETA.get(kind, 10000.0))
    return {key: value for key, value in hf.items() if value is not None or key == "sliding_window"}


def test_every_family_with_an_architecture_of_its_own_has_a_case():
    """Ministral has none: llama.cpp knows no such architecture; Mistral's files are Llama's."""
    assert {kind for kind, family in families().items() if family.gguf} <= set(LAYOUTS)
    assert {spelled(case)["model_type"] for case in CASES} == set(LAYOUTS)


@pytest.mark.parametrize("case", CASES)
def test_round_trip(tmp_path, case):
    hf = spelled(case)
    config = normalize(case, hf)
    values, tokenizer = random_values(config), load_checkpoint("tiny").tokenizer
    write_checkpoint(tmp_path / "hf", config, values, tokenizer)
    convert(tmp_path / "model.gguf", hf, values, tokenizer)
    theirs, ours = jpo.load(tmp_path / "hf"), jpo.load(tmp_path / "model.gguf")
    given = sequences(512)
    expected = scores(theirs, given, "joint")
    np.testing.assert_allclose(scores(ours, given, "joint"), expected, rtol=1e-5)
    for text in ("The cat's 12 hats", "  two\n\n lines "):
        assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
    assert ours.config["model_type"] == ("llama" if case.startswith("mistral") else hf["model_type"])
    for engine in ("q_proj", "down_proj"):
        ours.add_lora(r=2, target_modules=[engine], seed=1)
        theirs.add_lora(r=2, target_modules=[engine], seed=1)
        assert ours.trainable.shapes == theirs.trainable.shapes
    if case == "llama3-factors":
        with pytest.raises(jpo.JpoError, match=r"GGUF tensor rope_freqs.weight\) have no spelling"):
            ours.merge(tmp_path / "back")
        return
    ours.merge(tmp_path / "back")  # what was read can be written for transformers again
    np.testing.assert_allclose(scores(jpo.load(tmp_path / "back"), given, "joint"), expected, rtol=1e-5)
