"""The model against transformers and PEFT: log-likelihoods, gradients of every variant, SmolLM2, generation."""

import numpy as np
import peft
import pytest
import torch
from parity.peers import peer_of, sequence_logp, smollm2_values, token_logps
from reference.models import VARIANTS, adapter_of, relative, sequences, write_random

import jpo
from jpo.data.forest import build_forest
from jpo.formats import load_checkpoint
from jpo.formats.peft import read_adapter


def ours_and_theirs(tmp_path, **changes):
    hf, values = write_random(tmp_path, **changes)
    return jpo.load(str(tmp_path), storage="float32"), peer_of(hf, values)


def scores(lm, given, scope, coefficients=None):
    """Sequence log-likelihoods; with coefficients (N,), their weighted sum's gradient is left in lm.trainable."""
    forest = build_forest(given, scope=scope)
    result = lm.forward(forest, keep=coefficients is not None)
    if coefficients is not None:
        lm.backward(forest.entry_coefficients(np.asarray(coefficients, np.float64)))
    return forest.sequence_sums(result.logps)


def check_likelihoods(lm, model, given, tolerance):
    for scope in ("response", "joint"):
        ours = scores(lm, given, scope)
        with torch.no_grad():
            theirs = [float(sequence_logp(model, *pair, scope)) for pair in given]
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_likelihoods_of_every_variant(tmp_path, name):
    lm, model = ours_and_theirs(tmp_path, **VARIANTS[name])
    check_likelihoods(lm, model, sequences(512), 1e-4)


@pytest.mark.parametrize("name", ["plain", "mistral-window", "rope-yarn", "all-biases"])
def test_whole_distribution(tmp_path, name):
    """One prompt with every token of the vocabulary as a response: the whole log-softmax row."""
    lm, model = ours_and_theirs(tmp_path, **VARIANTS[name])
    prompt = sequences(512)[0][0]
    ours = scores(lm, [(prompt, (token,)) for token in range(512)], "response")
    with torch.no_grad():
        theirs = torch.log_softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_full_gradients_of_every_variant(tmp_path, name):
    lm, model = ours_and_theirs(tmp_path, **VARIANTS[name])
    given = sequences(512)
    weights = np.linspace(-1, 1.5, len(given))
    lm.enable_full()
    scores(lm, given, "joint", weights)
    sum(w * sequence_logp(model, *pair, "joint") for w, pair in zip(weights, given)).backward()
    theirs = {key: value.grad.numpy() for key, value in model.named_parameters()}
    assert set(lm.trainable.names) == set(theirs)
    for key in lm.trainable.names:
        assert relative(lm.trainable.grad(key), theirs[key]) < 1e-4, key


@pytest.mark.parametrize("name", ["plain", "wide-heads", "all-biases", "mistral-window"])
def test_adapter_gradients(tmp_path, name):
    hf, values = write_random(tmp_path / "base", **VARIANTS[name])
    adapter_of(tmp_path / "adapter", values)
    lm = jpo.load(str(tmp_path / "base"), storage="float32")
    lm.load_adapter(str(tmp_path / "adapter"))
    model = peft.PeftModel.from_pretrained(peer_of(hf, values), tmp_path / "adapter", is_trainable=True).eval()
    compare_adapter_gradients(lm, model, sequences(512), 1e-3)
    check_likelihoods(lm, model, sequences(512), 1e-4)


def compare_adapter_gradients(lm, model, given, tolerance):
    weights = np.linspace(-1, 1.5, len(given))
    scores(lm, given, "response", weights)
    sum(w * sequence_logp(model, *pair, "response") for w, pair in zip(weights, given)).backward()
    theirs = {
        key.replace(".default", ""): value.grad.numpy()
        for key, value in model.named_parameters()
        if value.requires_grad
    }
    assert set(lm.trainable.names) == set(theirs)
    for key in lm.trainable.names:
        assert np.linalg.norm(theirs[key]) > 0
        assert relative(lm.trainable.grad(key), theirs[key]) < tolerance, key


def test_written_adapter_changes_peft_as_it_changes_us(tmp_path):
    hf, values = write_random(tmp_path / "base")
    adapter_of(tmp_path / "first", values)
    lm = jpo.load(str(tmp_path / "base"), storage="float32")
    lm.load_adapter(str(tmp_path / "first"))
    lm.save_adapter(str(tmp_path / "saved"))
    for name, value in read_adapter(tmp_path / "first")[1].items():
        np.testing.assert_array_equal(read_adapter(tmp_path / "saved")[1][name], value)
    given = sequences(512)
    with lm.disable_adapter():
        before = scores(lm, given, "response")
    change = scores(lm, given, "response") - before
    model = peft.PeftModel.from_pretrained(peer_of(hf, values), tmp_path / "saved").eval()
    with torch.no_grad():
        theirs = [float(sequence_logp(model, *pair, "response")) for pair in given]
        with model.disable_adapter():
            theirs = [t - float(sequence_logp(model, *pair, "response")) for t, pair in zip(theirs, given)]
    assert np.abs(theirs).min() > 0.01
    np.testing.assert_allclose(change, theirs, atol=1e-3)


@pytest.fixture(scope="module")
def smollm2():
    checkpoint = load_checkpoint("smollm2-135m")
    values = smollm2_values(checkpoint)
    return jpo.load("smollm2-135m"), peer_of(checkpoint.config["hf"], values), values


TEXTS = [
    ("What is the capital of France?", " The capital of France is Paris."),
    ("What is the capital of France?", " I do not know, and I will not guess."),
    ("Write a haiku about rain.", " Soft rain on the roof\nA cat watches from the sill\nEvening comes early"),
    ("def add(a, b):", "\n    return a + b\n"),
]


def encoded(lm):
    encode = lm.tokenizer.encode
    return [(tuple(encode(prompt)), (*encode(response), lm.tokenizer.eos_token_id)) for prompt, response in TEXTS]


def test_smollm2_likelihoods(smollm2):
    lm, model, _ = smollm2
    given = encoded(lm)
    check_likelihoods(lm, model, given, 1e-4)
    ids = (*given[2][0], *given[2][1])
    forest = build_forest([(ids[:1], ids[1:])], scope="response")
    with torch.no_grad():
        np.testing.assert_allclose(lm.forward(forest).logps, token_logps(model, ids).numpy(), rtol=1e-4, atol=1e-4)
    ours = lm.sequence_logps([prompt for prompt, _ in TEXTS], [response for _, response in TEXTS])
    np.testing.assert_allclose(ours, scores(lm, given, "response"), rtol=1e-6)


def test_smollm2_adapter_gradients(smollm2, tmp_path):
    _, model, values = smollm2
    adapter_of(tmp_path, values, r=8)
    lm = jpo.load("smollm2-135m")
    lm.load_adapter(str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(model, tmp_path, is_trainable=True).eval()
    try:
        compare_adapter_gradients(lm, theirs, encoded(lm)[:3], 1e-3)
    finally:
        theirs.unload()


def test_greedy_generation_is_transformers(smollm2):
    lm, model, _ = smollm2
    text = "The quick brown fox jumps over the lazy dog while the old farmer counts his sheep and the rain falls "
    text += "softly on the roof of the barn. Every morning the children walk along the river to a small school. "
    ids = lm.tokenizer.encode(text * 8)
    prompts = [lm.tokenizer.decode(ids[start : start + 32]) for start in range(0, 8 * 19, 19)]
    completions = lm.generate(prompts, temperature=0.0, max_new_tokens=24)
    for prompt, (completion, *_) in zip(prompts, completions):
        tokens = torch.tensor([lm.tokenizer.encode(prompt)])
        with torch.no_grad():
            output = model.generate(tokens, do_sample=False, max_new_tokens=24, pad_token_id=2)[0, tokens.shape[1] :]
        expected = [i for i in output.tolist()]
        ours = list(completion.token_ids)
        assert ours == expected[: len(ours)] and (len(ours) == len(expected) or set(expected[len(ours) :]) <= {2})
