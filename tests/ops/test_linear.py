"""Products with stored weights: every dtype, compute type, direction and instruction set against float64 NumPy."""

import numpy as np
import pytest

from jpo import _core

DTYPES = ("F32", "BF16", "F16", "Q8_0", "Q4_0", "Q4_1")
BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}
SHAPES = [(1, 1, 32), (3, 7, 64), (17, 33, 96), (64, 200, 576), (130, 49, 608), (2, 576, 192)]  # (M, N, K)


def make_weight(rng, dtype, n, k):
    """Stored bytes of a random weight and its exact value in float64."""
    if dtype == "F32":
        values = rng.standard_normal((n, k)).astype(np.float32)
        return values.view(np.uint8).reshape(-1), values.astype(np.float64)
    if dtype == "F16":
        values = rng.standard_normal((n, k)).astype(np.float16)
        return values.view(np.uint8).reshape(-1), values.astype(np.float64)
    if dtype == "BF16":
        bits = (rng.standard_normal((n, k)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits.view(np.uint8).reshape(-1), (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    blocks = rng.integers(0, 256, (n, k // 32, BYTES[dtype]), dtype=np.uint8)
    d = (rng.standard_normal((n, k // 32, 1)) * 0.05).astype(np.float16)
    blocks[..., 0:2] = d.view(np.uint8)
    d = d.astype(np.float64)
    if dtype == "Q8_0":
        return blocks.reshape(-1), (d * blocks[..., 2:].view(np.int8)).reshape(n, k)
    offset = 4 if dtype == "Q4_1" else 2
    nibbles = np.concatenate([blocks[..., offset:] & 15, blocks[..., offset:] >> 4], -1).astype(np.float64)
    if dtype == "Q4_0":
        return blocks.reshape(-1), (d * (nibbles - 8)).reshape(n, k)
    minimum = rng.standard_normal((n, k // 32, 1)).astype(np.float16)
    blocks[..., 2:4] = minimum.view(np.uint8)
    values = (d.astype(np.float32) * nibbles.astype(np.float32) + minimum.astype(np.float32)).astype(np.float64)
    return blocks.reshape(-1), values.reshape(n, k)


def product(x, data, n, k, dtype, compute="float32", direction="forward", out=None):
    """The product inside a larger buffer of sentinels, with odd row strides on both sides."""
    m, width = x.shape[0], n if direction == "forward" else k
    padded = np.full((m + 2, width + 3), 77, np.float32)
    inner = padded[1 : m + 1, 1 : width + 1]
    if out is not None:
        inner[:] = out
    wide = np.full((m, x.shape[1] + 5), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    _core._linear_product(inner, wide[:, : x.shape[1]], data, n, k, dtype, compute, direction, out is not None)
    border = padded.copy()
    border[1 : m + 1, 1 : width + 1] = 77
    assert (border == 77).all()
    return inner.copy()


def available_isas():
    return [isa for isa in ("generic", "avx2", "avx512", "neon") if _core._linear_isa(isa)]


ISAS = available_isas()
_core._linear_isa(_core.system_info()["isa_best"])


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that the machine has, restored afterwards."""
    before = _core.system_info()["isa"]
    _core._linear_isa(request.param)
    yield request.param
    _core._linear_isa(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_widen_exactly(dtype):
    rng = np.random.default_rng(1)
    data, values = make_weight(rng, dtype, 9, 96)
    out = np.empty((4, 96), np.float32)
    _core._weight_rows(out, data, 9, 96, dtype, 3)
    assert np.array_equal(out.astype(np.float64), values[3:7])


def test_half_special_values_widen():
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty((1, 65536), np.float32)
    _core._weight_rows(out, bits.view(np.uint8), 1, 65536, "F16", 0)
    assert np.array_equal(out[0], bits.view(np.float16).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_against_float64(isa, dtype, direction):
    rng = np.random.default_rng(2)
    for m, n, k in SHAPES:
        data, w = make_weight(rng, dtype, n, k)
        w = w if direction == "backward" else w.T
        x = rng.standard_normal((m, w.shape[0])).astype(np.float32)
        exact, scale = x.astype(np.float64) @ w, np.abs(x).astype(np.float64) @ np.abs(w)
        bound = (w.shape[0] + 2) * 2.0**-24 * scale  # sum of absolute products, any order of sums
        got = product(x, data, n, k, dtype, direction=direction)
        assert (np.abs(got - exact) <= bound).all()
        before = rng.standard_normal(exact.shape).astype(np.float32)
        got = product(x, data, n, k, dtype, direction=direction, out=before)
        assert (np.abs(got - (exact + before)) <= bound + 2.0**-22 * (np.abs(before) + np.abs(exact))).all()


def test_weight_gradient_against_float64():
    rng = np.random.default_rng(3)
    for m, n, k in SHAPES:
        dy, x = (rng.standard_normal((m, width)).astype(np.float32) for width in (n, k))
        before = rng.standard_normal((n, k)).astype(np.float32)
        dw = before.copy()
        _core._linear_backward_weight(dw, dy, x)
        exact = before + dy.T.astype(np.float64) @ x
        scale = np.abs(before) + np.abs(dy.T).astype(np.float64) @ np.abs(x)
        assert (np.abs(dw - exact) <= (m + 2) * 2.0**-24 * scale).all()


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["F32", "Q4_1"])
def test_threads_do_not_change_a_bit(isa, dtype, direction):
    rng = np.random.default_rng(4)
    before = _core.get_num_threads()
    try:
        for m, n, k in [(1, 576, 192), (7, 192, 576), (300, 200, 576)]:
            data, _ = make_weight(rng, dtype, n, k)
            x = rng.standard_normal((m, k if direction == "forward" else n)).astype(np.float32)
            outs = []
            for threads in (1, 2, 3):
                _core.set_num_threads(threads)
                outs.append(product(x, data, n, k, dtype, direction=direction))
            assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2])
    finally:
        _core.set_num_threads(before)


def test_empty_batch_is_no_work():
    data, _ = make_weight(np.random.default_rng(5), "Q8_0", 8, 32)
    out = np.empty((0, 8), np.float32)
    _core._linear_product(out, np.empty((0, 32), np.float32), data, 8, 32, "Q8_0")
