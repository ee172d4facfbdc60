"""The model against its float64 twin: log-likelihoods of every variant, gradients by finite differences, the forest."""

import numpy as np
import pytest
from reference import decoder
from reference.models import VARIANTS, adapter_of, relative, sequences, write_random

import jpo
from jpo.data.forest import build_forest
from jpo.formats.config import normalize
from jpo.formats.peft import read_adapter

STORAGES = ("float32", "bfloat16", "q8_0")


def model_and_values(tmp_path, storage="float32", **changes):
    hf, values = write_random(tmp_path / "base", **changes)
    return jpo.load(str(tmp_path / "base"), storage=storage), normalize("twin", hf), values


def scores(lm, given, scope="response", coefficients=None):
    """Sequence log-likelihoods; with coefficients (N,), their weighted sum's gradient is left in lm.trainable."""
    forest = build_forest(given, scope=scope)
    result = lm.forward(forest, keep=coefficients is not None)
    if coefficients is not None:
        lm.backward(forest.entry_coefficients(np.asarray(coefficients, np.float64)))
    return forest.sequence_sums(result.logps)


def twin_scores(config, values, given, scope="response", adapter=None):
    return np.array([decoder.sequence_logp(config, values, *pair, scope, adapter) for pair in given])


@pytest.mark.parametrize("scope", ["response", "joint"])
@pytest.mark.parametrize("name", VARIANTS)
def test_likelihoods_are_the_twin_s(tmp_path, name, scope):
    lm, config, values = model_and_values(tmp_path, **VARIANTS[name])
    given = sequences(512)
    np.testing.assert_allclose(scores(lm, given, scope), twin_scores(config, values, given, scope), rtol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_full_gradient_along_each_tensor(tmp_path, name):
    """<g, u> for a random direction u in each tensor alone, against the twin's central difference."""
    lm, config, values = model_and_values(tmp_path, **VARIANTS[name])
    lm.enable_full()
    given = sequences(512)[:4]
    weights = np.array([1.0, -0.7, 0.4, -1.3])
    scores(lm, given, "joint", weights)
    assert set(lm.trainable.names) == set(values)
    random = np.random.default_rng(5)
    for tensor in lm.trainable.names:
        gradient = np.asarray(lm.trainable.grad(tensor), np.float64)
        # half along the gradient, so that the slope is not lost among a tensor's many values
        direction = random.standard_normal(gradient.shape)
        direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)

        def objective(value, tensor=tensor):
            return weights @ twin_scores(config, {**values, tensor: value}, given, "joint")

        expected = decoder.directional_derivative(objective, values[tensor], direction)
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=2e-4), tensor


@pytest.mark.parametrize("name", ["plain", "wide-heads", "all-biases", "mistral-window"])
def test_adapter_gradient_along_each_matrix(tmp_path, name):
    lm, config, values = model_and_values(tmp_path, **VARIANTS[name])
    adapter_of(tmp_path / "adapter", values)
    lm.load_adapter(str(tmp_path / "adapter"))
    settings, tensors = read_adapter(tmp_path / "adapter")
    given, weights = sequences(512)[:4], np.array([1.0, -0.7, 0.4, -1.3])
    ours = scores(lm, given, "response", weights)
    theirs = twin_scores(config, values, given, "response", (settings.scaling, tensors))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert set(lm.trainable.names) == set(tensors)
    random = np.random.default_rng(6)
    for tensor in sorted(tensors)[:: 1 if name == "plain" else 5]:
        gradient = np.asarray(lm.trainable.grad(tensor), np.float64)
        direction = random.standard_normal(gradient.shape)
        direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)

        def objective(value, tensor=tensor):
            changed = (settings.scaling, {**tensors, tensor: value})
            return weights @ twin_scores(config, values, given, "response", changed)

        expected = decoder.directional_derivative(objective, tensors[tensor], direction)
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=2e-4), tensor


@pytest.mark.parametrize("scope", ["response", "joint"])
def test_the_forest_is_each_sequence_alone(tmp_path, scope):
    """Shared prompts, a duplicate, a prompt that begins another: the same numbers as one sequence at a time."""
    lm, _, values = model_and_values(tmp_path)
    adapter_of(tmp_path / "adapter", values)
    lm.load_adapter(str(tmp_path / "adapter"))
    given = sequences(512)
    prompt, response = given[0]
    given += [given[0], (prompt[:4], response), (prompt, response[:5])]
    weights = np.linspace(-1, 1.7, len(given))
    together = scores(lm, given, scope, weights)
    gradients = lm.trainable.grads.copy()
    lm.trainable.grads[:] = 0
    alone = np.concatenate([scores(lm, [pair], scope, [weight]) for pair, weight in zip(given, weights)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert relative(gradients, lm.trainable.grads) < 1e-5
    forest = build_forest(given, scope=scope)
    distinct = {(p, None) for p, _ in given} | set(given)
    assert forest.rows <= sum(len(r if r is not None else p) for p, r in distinct)


@pytest.mark.parametrize("storage", STORAGES)
def test_storages_change_little_and_are_what_they_say(tmp_path, storage):
    lm, config, values = model_and_values(tmp_path, storage, intermediate_size=64)
    given = sequences(512)
    error = relative(scores(lm, given), twin_scores(config, values, given))
    assert error < {"float32": 1e-5, "bfloat16": 1e-2, "q8_0": 1e-2}[storage]
    assert storage == "float32" or error > 1e-7


def test_threads_give_the_same_bits(tmp_path):
    lm, _, values = model_and_values(tmp_path)
    adapter_of(tmp_path / "adapter", values)
    lm.load_adapter(str(tmp_path / "adapter"))
    before, found = jpo.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            jpo.set_num_threads(threads)
            lm.trainable.grads[:] = 0
            found.append((scores(lm, sequences(512), "joint", np.arange(6.0)), lm.trainable.grads.copy()))
    finally:
        jpo.set_num_threads(before)
    for logps, gradients in found[1:]:
        np.testing.assert_array_equal(logps, found[0][0])
        np.testing.assert_array_equal(gradients, found[0][1])


def test_an_adapter_off_is_the_base_model(tmp_path):
    lm, config, values = model_and_values(tmp_path)
    given = sequences(512)
    base = scores(lm, given)
    lm.add_lora(r=4, lora_alpha=8, target_modules="all-linear")
    np.testing.assert_array_equal(scores(lm, given), base)  # B = 0
    adapter_of(tmp_path / "adapter", values)
    lm.load_adapter(str(tmp_path / "adapter"))
    assert np.abs(scores(lm, given) - base).min() > 1e-3
    with lm.disable_adapter():
        np.testing.assert_array_equal(scores(lm, given), base)
    assert np.abs(scores(lm, given) - base).min() > 1e-3
