"""An adapter that is taken out of a model and put back says what it said, whatever it is made of."""

import numpy as np
import pytest

import jpo


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ("lm_head",)}],
    ids=["ranks", "dora", "bias", "saved"],
)
def test_taken_out_and_put_back(options):
    lm = jpo.load("tiny")
    base = lm.logits([5, 9, 30])
    lm.add_lora(r=2, target_modules="all-linear", **options)
    lm.trainable.params[:] += np.random.default_rng(0).normal(0, 0.05, lm.trainable.params.size)
    changed = lm.logits([5, 9, 30])
    held = lm.take_adapter()
    np.testing.assert_array_equal(lm.logits([5, 9, 30]), base)
    lm.add_lora(r=1)
    lm.use_adapter(held)
    np.testing.assert_array_equal(lm.logits([5, 9, 30]), changed)
    assert lm.lora is held.lora and lm.trainable is held.trainable and not np.array_equal(changed, base)
