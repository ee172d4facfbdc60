"""Gemma 3 270M, quantized, from its installed package: transformers' model of the dequantized weights says the same."""

import os

import numpy as np
import pytest
import torch
from parity.test_dpo_steps import PAIRS, compare, our_steps, trl_steps
from parity.test_families import peer
from parity.test_model import check_likelihoods
from reference.models import adapter_of

import jpo
from jpo.errors import JpoError
from jpo.formats import load_checkpoint, write_checkpoint

TEXTS = [
    ("What is the capital of France?", " The capital of France is Paris."),
    ("Write a haiku about rain.", " Soft rain on the roof\nA cat watches from the sill"),
]


def gemma_keys(holder):
    return {key: value for key, value in holder.config["hf"].items() if key != "architectures"}


@pytest.fixture(scope="module")
def gemma():
    try:
        lm = jpo.load("gemma3-270m")
    except JpoError as error:
        if os.environ.get("JPO_REQUIRE_PARITY") == "1":
            raise
        pytest.skip(f"parity: {error}")
    return lm, peer(gemma_keys(lm), {name: tensor.float32() for name, tensor in lm._checkpoint.tensors.items()})


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


def test_it_says_its_licence_and_what_it_holds(gemma, capsys):
    checkpoint = load_checkpoint("gemma3-270m")
    assert "ai.google.dev/gemma/terms" in capsys.readouterr().err
    types = {tensor.dtype for tensor in checkpoint.tensors.values()}
    assert {"Q5_0", "Q4_K", "Q6_K", "Q8_0"} <= types
    assert checkpoint.config["num_hidden_layers"] == 18 and checkpoint.config["vocab_size"] == 262144
    assert checkpoint.tokenizer.adds_bos and checkpoint.tokenizer.bos_token_id == 2


def test_ten_dpo_steps_equal_trls(gemma, tmp_path):
    import peft

    checkpoint = load_checkpoint("gemma3-270m")
    values = {name: tensor.float32() for name, tensor in checkpoint.tensors.items()}
    write_checkpoint(tmp_path / "base", checkpoint.config, values, checkpoint.tokenizer)
    adapter_of(tmp_path / "adapter", values, r=8, scale=0.02)
    model = peft.PeftModel.from_pretrained(
        peer(gemma_keys(checkpoint), values), tmp_path / "adapter", is_trainable=True
    )
    theirs, ids = trl_steps(tmp_path / "base", tmp_path / "trl", model, gemma[1], 1e-4)
    del model
    lm = jpo.load("gemma3-270m")
    lm.load_adapter(str(tmp_path / "adapter"))
    encode, bos = lm.tokenizer.encode, [lm.tokenizer.bos_token_id]  # TRL puts BOS in front of the prompt, as we do
    for (prompt, *responses), given in zip(PAIRS, ids, strict=True):
        ends = [[*encode(text), lm.tokenizer.eos_token_id] for text in responses]
        assert [list(part) for part in given] == [bos + encode(prompt), *ends]
    compare(our_steps(lm, 1e-4), theirs)


def test_a_pair_trains_end_to_end(gemma, tmp_path):
    """One step on the stored weights moves the margin; the adapter reloads to the same scores."""
    lm = jpo.load("gemma3-270m")
    config = jpo.PreferenceConfig(
        steps=3, batch_size=2, learning_rate=1e-3, warmup_steps=0, output=str(tmp_path / "out")
    )
    records = [{"prompt": prompt, "chosen": chosen, "rejected": " no"} for prompt, chosen in TEXTS]
    history = jpo.PreferenceTrainer(lm, records[:2], config).train()
    assert history["rewards/margins"][-1] > history["rewards/margins"][0] + 0.01
    scores = lm.sequence_logps(*zip(*TEXTS, strict=True))
    again = jpo.load("gemma3-270m")
    again.load_adapter(str(tmp_path / "out"))
    np.testing.assert_array_equal(again.sequence_logps(*zip(*TEXTS, strict=True)), scores)
