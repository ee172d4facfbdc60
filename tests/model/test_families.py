"""Every operator that a family asks for, against the float64 twin: log-likelihoods, gradients by finite differences."""

import numpy as np
import pytest
from model.test_model import scores, twin_scores
from reference import decoder
from reference.families import FAMILIES, configuration
from reference.models import random_values, sequences

import jpo
from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize


def model_and_values(folder, name):
    config = normalize(name, configuration(name))
    values = random_values(config)
    write_checkpoint(folder, config, values, load_checkpoint("tiny").tokenizer)
    return jpo.load(str(folder), storage="float32"), config, values


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
