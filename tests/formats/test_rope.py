"""RoPE scalings against their papers' formulas, spelled out number by number."""

import math

import numpy as np
import pytest

from jpo.errors import FormatError
from jpo.formats.rope import inverse_frequencies

BASE = [10000.0 ** -(i / 64) for i in range(0, 64, 2)]


def test_default_is_rounded_to_float32():
    values, factor = inverse_frequencies("c", 64, 10000.0, {}, 2048)
    assert factor == 1.0 and values == [float(np.float32(value)) for value in BASE]


def test_llama3():
    parameters = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    values, factor = inverse_frequencies(
        "c", 64, 10000.0, {**parameters, "original_max_position_embeddings": 1024}, 8192
    )
    expected = []
    for base in BASE:
        turns = 1024 * base / (2 * math.pi)
        share = min(max((turns - 1) / 3, 0), 1)
        expected.append(base * share + base / 8 * (1 - share))
    assert 0 < sum(a != b for a, b in zip(expected, BASE, strict=True)) < 32
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert factor == 1.0


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn(truncate):
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "truncate": truncate}
    values, factor = inverse_frequencies("c", 64, 10000.0, parameters, 2048)
    low, high = (64 * math.log(512 / (turns * 2 * math.pi)) / (2 * math.log(10000)) for turns in (32, 1))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low = max(low, 0)
    for i, base in enumerate(BASE):
        slow = min(max((i - low) / (high - low), 0), 1)
        assert values[i] == pytest.approx(base / 4 * slow + base * (1 - slow), rel=1e-6)
    assert factor == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_attention_factors():
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    given = inverse_frequencies("c", 64, 10000.0, {**parameters, "attention_factor": 1.5}, 2048)[1]
    ratio = inverse_frequencies("c", 64, 10000.0, {**parameters, "mscale": 2.0, "mscale_all_dim": 1.0}, 2048)[1]
    assert given == 1.5
    assert ratio == pytest.approx((0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor"),
        ({"rope_type": "linear", "factor": -1}, "factor"),
        ({"rope_type": "linear", "factor": True}, "factor"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"}, "beta_fast"),
        ({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}, "high_freq_factor"),
        ({"rope_type": "su"}, "'su'"),
    ],
)
def test_bad_parameters_are_named(parameters, named):
    with pytest.raises(FormatError) as caught:
        inverse_frequencies("some/config.json", 64, 10000.0, parameters, 2048)
    assert named in str(caught.value) and "some/config.json" in str(caught.value)
