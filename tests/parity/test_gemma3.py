"""Gemma 3 270M, quantized, from its installed package: transformers' model of the dequantized weights says the same."""

import os

import numpy as np
import pytest
import torch
from parity.test_families import peer
from parity.test_model import check_likelihoods

import jpo
from jpo.errors import JpoError

TEXTS = [
    ("What is the capital of France?", " The capital of France is Paris."),
    ("Write a haiku about rain.", " Soft rain on the roof\nA cat watches from the sill"),
]


@pytest.fixture(scope="module")
def gemma():
    try:
        lm = jpo.load("gemma3-270m")
    except JpoError as error:
        if os.environ.get("JPO_REQUIRE_PARITY") == "1":
            raise
        pytest.skip(f"parity: {error}")
    hf = {key: value for key, value in lm.config["hf"].items() if key != "architectures"}
    return lm, peer(hf, {name: tensor.float32() for name, tensor in lm._checkpoint.tensors.items()})


def test_likelihoods(gemma):
    lm, model = gemma
    bos = lm.tokenizer.bos_token_id
    given = [((bos, *lm.tokenizer.encode(prompt)), tuple(lm.tokenizer.encode(response))) for prompt, response in TEXTS]
    check_likelihoods(lm, model, given, 1e-4)


def test_greedy_text(gemma):
    lm, model = gemma
    prompts = ["The quick brown fox", "The capital of France is"]
    for prompt, (completion,) in zip(prompts, lm.generate(prompts, temperature=0.0, max_new_tokens=12), strict=True):
        ids = [lm.tokenizer.bos_token_id, *lm.tokenizer.encode(prompt)]
        with torch.no_grad():
            theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert list(completion.token_ids) == theirs[0, len(ids) :].tolist()[: len(completion.token_ids)]


def test_one_plus_w_is_exact(gemma):
    """The file holds 1 + w; w is stored as Hugging Face does, and 1 + w comes back to the last bit."""
    import gguf

    from jpo.formats.installed import installed_model

    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(installed_model("gemma3-270m")).tensors}
    ours = gemma[0]._checkpoint.tensors["model.layers.3.pre_feedforward_layernorm.weight"].float32()
    np.testing.assert_array_equal(ours + np.float32(1), reader["blk.3.ffn_norm.weight"].data)
