"""Products that share their rows, low-rank updates among them (ops/group.c), through a whole model with an adapter:
the same bits as the portable definition, for every number of threads, close to float32, one call or several."""

from contextlib import contextmanager

import numpy as np
import pytest
from reference.models import adapter_of, relative, sequences, write_random

import jpo
from jpo import _core
from jpo.data.forest import build_forest

ERROR = {"bfloat16": 3e-2, "bfloat16x2": 1e-2, "bfloat16x3": 1e-4}


@contextmanager
def portable(compute):
    """The definition serves `compute`."""
    assert _core._linear_force("portable_" + compute)
    try:
        yield
    finally:
        _core._linear_force("")


def outcome(folder, compute, full=False, shapes=((9, 12), (7, 20), (15, 5))):
    """(log-likelihoods, gradients) of a random model of 3 layers with an adapter, or of its own weights; `shapes`:
    tokens of prompts and responses."""
    lm = jpo.load(str(folder / "base"), compute=compute)
    if full:
        lm.enable_full()
    else:
        lm.load_adapter(str(folder / "adapter"))
    forest = build_forest(sequences(512, shapes=shapes), scope="joint")
    result = lm.forward(forest, keep=True)
    lm.backward(forest.entry_coefficients(np.linspace(-1, 1.7, 2 * len(shapes))))
    return forest.sequence_sums(result.logps), lm.trainable.grads.copy()


@pytest.fixture(scope="module", params=[176, 2144])  # the second: the down projection's depth takes two calls
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("group")
    _, values = write_random(path / "base", hidden_size=80, intermediate_size=request.param)
    adapter_of(path / "adapter", values)
    return path


def needs(compute):
    """Skips, by name, where no native kernel serves `compute`."""
    names = [name for name, of, usable in _core.product_kernels() if of == compute and usable and "amx" in name]
    if not names:
        pytest.skip(f"{compute} needs the processor's matrix tiles (amx)")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("compute", ERROR)
def test_tiles_equal_their_definition_through_a_model(folder, compute, full):
    needs(compute)
    logps, gradients = outcome(folder, compute, full=full)
    with portable(compute):
        expected_logps, expected_gradients = outcome(folder, compute, full=full)
    np.testing.assert_array_equal(logps, expected_logps)
    np.testing.assert_array_equal(gradients, expected_gradients)


@pytest.mark.parametrize("compute", ERROR)
def test_adapters_in_tiles_stay_close_to_float32(folder, compute):
    exact_logps, exact_gradients = outcome(folder, "float32")
    with portable(compute):
        logps, gradients = outcome(folder, compute)
    assert relative(logps, exact_logps) < ERROR[compute]
    assert relative(gradients, exact_gradients) < 2 * ERROR[compute]
    assert not np.array_equal(logps, exact_logps)


LONG = [
    {"model_type": "mistral", "sliding_window": 100, "attention_bias": None, "mlp_bias": None, "head_dim": 24},
    {"head_dim": 16, "num_attention_heads": 6, "num_key_value_heads": 1},
]


@pytest.mark.parametrize("changes", LONG, ids=["window", "one-kv-head"])
@pytest.mark.parametrize("compute", ["bfloat16", "bfloat16x3"])
def test_attention_in_tiles_over_long_paths(tmp_path, compute, changes):
    """More keys than a tile of them holds, whole blocks outside of a window, blocks of few queries."""
    _, values = write_random(tmp_path / "base", num_hidden_layers=2, max_position_embeddings=384, **changes)
    adapter_of(tmp_path / "adapter", values)
    exact_logps, exact_gradients = outcome(tmp_path, "float32", shapes=[(270, 38)])
    with portable(compute):
        logps, gradients = outcome(tmp_path, compute, shapes=[(270, 38)])
    assert relative(logps, exact_logps) < ERROR[compute]
    assert relative(gradients, exact_gradients) < 2 * ERROR[compute]


@pytest.mark.parametrize("compute", ["float32", "int16", *ERROR])
def test_threads_do_not_change_a_bit_of_a_pass(folder, compute):
    if compute in ERROR:
        needs(compute)
    elif compute == "int16" and not any(
        of == "int16" and "portable" not in name and usable for name, of, usable in _core.product_kernels()
    ):
        pytest.skip("int16 needs avx2 or avx512_vnni")
    before, found = jpo.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            jpo.set_num_threads(threads)
            found.append(outcome(folder, compute))
    finally:
        jpo.set_num_threads(before)
    for logps, gradients in found[1:]:
        np.testing.assert_array_equal(logps, found[0][0])
        np.testing.assert_array_equal(gradients, found[0][1])
