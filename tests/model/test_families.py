"""Every operator that a family asks for, against the float64 twin: log-likelihoods, gradients by finite differences."""

import numpy as np
import pytest
from model.test_model import scores, twin_scores
from ops.test_group import portable
from reference import decoder
from reference.families import FAMILIES, configuration
from reference.models import random_values, relative, sequences

import jpo
from jpo.data.forest import build_forest
from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize


def model_and_values(folder, name, compute="float32"):
    config = normalize(name, configuration(name))
    values = random_values(config)
    write_checkpoint(folder, config, values, load_checkpoint("tiny").tokenizer)
    return jpo.load(str(folder), storage="float32", compute=compute), config, values


# the twin has one set of longrope's frequencies; tests/parity compares both
NAMES = [name for name in FAMILIES if name != "phi3-beyond"]


@pytest.mark.parametrize("name", NAMES)
def test_likelihoods_are_the_twin_s(tmp_path, name):
    lm, config, values = model_and_values(tmp_path, name)
    given = sequences(512)
    np.testing.assert_allclose(scores(lm, given, "joint"), twin_scores(config, values, given, "joint"), rtol=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_full_gradient_along_each_tensor(tmp_path, name):
    """<g, u> for a direction u in each tensor of one layer and in those that stand once, against the twin's slope."""
    lm, config, values = model_and_values(tmp_path, name)
    lm.enable_full()
    given, weights = sequences(512)[:2], np.array([1.0, -0.7])
    scores(lm, given, "joint", weights)
    random = np.random.default_rng(5)
    layers = [f".{i}." for i in range(config["num_hidden_layers"] - 1)]
    for tensor in [name for name in lm.trainable.names if not any(layer in name for layer in layers)]:
        gradient = np.asarray(lm.trainable.grad(tensor), np.float64)
        direction = random.standard_normal(gradient.shape)
        direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)

        def objective(value, tensor=tensor):
            return weights @ twin_scores(config, {**values, tensor: value}, given, "joint")

        expected = decoder.directional_derivative(objective, values[tensor], direction)
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=3e-4), tensor


# gemma3: seven layers of wide random weights, which carry a rounding on
@pytest.mark.parametrize(
    "name, bound", [("gemma2", 3e-4), ("gemma3", 3e-3), ("qwen2-window", 3e-4), ("granite", 1e-4), ("gpt2", 1e-4)]
)
def test_three_products_are_in_float32_s_class(tmp_path, name, bound):
    """Attention and products by tiles in bfloat16x3: soft-caps, windows, grouped heads, factors, heads of odd width."""
    found = []
    for compute in ("float32", "bfloat16x3"):
        with portable("bfloat16x3"):
            lm, _, _ = model_and_values(tmp_path, name, compute)
            lm.enable_full()
            logps = scores(lm, sequences(512), "joint", np.linspace(-1, 1.5, 6))
        found.append((logps, lm.trainable.grads.copy()))
    assert 0 < relative(found[1][0], found[0][0]) < 2e-5
    assert 0 < relative(found[1][1], found[0][1]) < bound


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "name",
    ["gemma2", "gemma3", "olmo2", "granite", "cohere2", "stablelm-parallel", "gpt2", "phi3-long", "smollm3-window"],
)
def test_gradient_checkpointing_changes_no_bit(tmp_path, name, full):
    """A layer computed again is the layer: norms behind branches, parallel residuals, soft-caps, factors, windows."""
    lm, _, _ = model_and_values(tmp_path, name)
    if full:
        lm.enable_full()
    else:
        lm.add_lora(r=3, target_modules="all-linear", use_dora=name in ("gemma3", "phi3-long"), lora_dropout=0.1)
        random = np.random.default_rng(1)
        lm.trainable.params += (0.05 * random.standard_normal(lm.trainable.params.size)).astype(np.float32)
    given, weights = sequences(512), np.linspace(-1, 1.5, 6)
    results = []
    for recompute in (False, True):
        lm.set_recompute(recompute)
        lm.trainable.grads[:] = 0
        forest = build_forest(given, scope="joint")
        logps = lm.forward(forest, keep=True, dropout_seed=5).logps
        lm.backward(forest.entry_coefficients(weights))
        results.append((logps, lm.trainable.grads.copy()))
    assert np.array_equal(results[0][0], results[1][0]) and np.array_equal(results[0][1], results[1][1])
    assert np.count_nonzero(results[0][1]) > 0.5 * lm.trainable.params.size
