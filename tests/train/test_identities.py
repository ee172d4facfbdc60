"""Lemma D.1 and the two-instruction identity, through tokenizer, template and model, for every kind of tokenizer.

Equal instructions: what the joint scope adds stands on both sides and cancels. Two instructions that occur once on
either side: each pair's D differs between the scopes, their sum does not (design.md 7)."""

import functools

import numpy as np
import pytest
from tokenizer_files import KINDS, make_tokenizer

import jpo
from jpo.data.templates import Template
from jpo.formats import Checkpoint
from jpo.formats.config import normalize
from jpo.formats.stored import StoredTensor
from jpo.formats.tiny import CONFIG, random_tensors

RESPONSES = [" Blue.", "Blue, as far as one can see from the shore.", "  two spaces", "\nYes", "é 猫 and more"]
SEA, MOON = "What is the color of the sea?", "Name the moon's"


make_tokenizer = functools.cache(make_tokenizer)  # training a unigram tokenizer gives another one each time


def model_of(kind):
    """A random model of three layers over that tokenizer, with an adapter that changes what it says."""
    tokenizer = make_tokenizer(kind)
    config = normalize("here", {**CONFIG, "vocab_size": tokenizer.vocab_size})
    tensors = {
        name: StoredTensor(name, "F32", value.shape, np.ascontiguousarray(value, np.float32).view(np.uint8).ravel())
        for name, value in random_tensors(config, 5).items()
    }
    lm = jpo.LanguageModel(Checkpoint(config, tensors, tokenizer, f"of {kind}"))
    lm.add_lora(r=4, target_modules="all-linear")
    lm.trainable.params[:] = np.random.default_rng(0).normal(0, 0.2, lm.trainable.params.size)
    return lm


def log_ratios(lm, template, items, scope):
    """s = log p - log p_ref of each (instruction, response), as training and scoring see them: (N,)."""
    prompts = [template.prompt_text(instruction) for instruction, _ in items]
    responses = [template.response_text(instruction, response)[0] for instruction, response in items]
    policy = lm.sequence_logps(prompts, responses, scope=scope)
    with lm.disable_adapter():
        return policy - lm.sequence_logps(prompts, responses, scope=scope)


@pytest.mark.parametrize("name", ["spaced", "paper", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_instructions_cancel(kind, name):
    """With "raw" the prompt ends within a word that the response goes on with: its ids must stay what they are."""
    lm, template = model_of(kind), Template.named(name)
    items = [("What is the col", response) for response in [*RESPONSES, "or of the sea", "our"]]
    joint, response = (log_ratios(lm, template, items, scope) for scope in ("joint", "response"))
    assert np.abs(joint - response).max() > 1e-2  # the prompt's share is there
    assert np.diff(joint) == pytest.approx(np.diff(response), abs=2e-4)


@pytest.mark.parametrize("name", ["spaced", "paper", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_instructions_that_stand_once_on_either_side(kind, name):
    lm, template = model_of(kind), Template.named(name)
    for better, worse, good, bad in zip(RESPONSES, RESPONSES[1:], RESPONSES[2:], RESPONSES[3:], strict=False):
        items = [(SEA, better), (MOON, worse), (MOON, good), (SEA, bad)]  # chosen, rejected; chosen, rejected
        sums = {}
        for scope in ("joint", "response"):
            s = log_ratios(lm, template, items, scope)
            sums[scope] = s[0] - s[1], s[2] - s[3]
        assert abs(sums["joint"][0] - sums["response"][0]) > 1e-3  # of one pair alone it is not so
        assert sum(sums["joint"]) == pytest.approx(sum(sums["response"]), abs=4e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_the_group_equals_in_both_scopes(kind):
    """iopo, a function of the group's sum: loss and gradients agree through the trainer; sigmoid's do not."""
    pairs = [
        {"i_chosen": SEA, "r_chosen": " Blue.", "i_reject": MOON, "r_reject": "No."},
        {"i_chosen": MOON, "r_chosen": "phases, all of them.", "i_reject": SEA, "r_reject": "  Red"},
    ]
    found = {}
    for loss in ("iopo", "sigmoid"):
        for scope in ("joint", "response"):
            config = jpo.PreferenceConfig(scope=scope, loss=loss, full_logps=True, batch_size=2)
            found[loss, scope] = jpo.PreferenceTrainer(model_of(kind), pairs, config).loss_and_gradients(pairs)
    (joint, gradients), (response, others) = found["iopo", "joint"], found["iopo", "response"]
    assert joint["loss"] == pytest.approx(response["loss"], rel=1e-4)
    for key, gradient in gradients.items():
        assert np.abs(gradient - others[key]).max() <= 1e-3 * np.abs(gradient).max(), key
    assert found["sigmoid", "joint"][0]["loss"] != pytest.approx(found["sigmoid", "response"][0]["loss"], rel=1e-3)
