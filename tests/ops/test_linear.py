"""Products with stored weights: every dtype, compute type, direction and instruction set against float64 NumPy."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
from reference.quants import BLOCKS, random_blocks, values_of

from jpo import _core

SCALARS = ("F32", "BF16", "F16")
DTYPES = SCALARS + tuple(BLOCKS)
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
    data = random_blocks(rng, dtype, n, k)
    return data, values_of(data, dtype, n, k).astype(np.float64)


def shapes_of(dtype, shapes):
    """The shapes with rows of whole blocks: K is raised to the next multiple."""
    block = _core.DTYPES[dtype][0]
    return [(m, n, -(-k // block) * block) for m, n, k in shapes]


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_widen_exactly(isa, dtype):
    rng = np.random.default_rng(1)
    k = 96 if dtype in SCALARS or BLOCKS[dtype][0] == 32 else 768
    data, values = make_weight(rng, dtype, 9, k)
    out = np.empty((4, k), np.float32)
    _core.widen_rows(out, data, 9, k, dtype, 3)
    assert np.array_equal(out.view(np.int32), values[3:7].astype(np.float32).view(np.int32))  # signs of zero too
    if dtype in SCALARS:  # widths that are no multiple of a vector
        data, values = make_weight(rng, dtype, 3, 43)
        out = np.empty((2, 43), np.float32)
        _core.widen_rows(out, data, 3, 43, dtype, 1)
        assert np.array_equal(out.astype(np.float64), values[1:])


def test_half_special_values_widen(isa):
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty((1, 65536), np.float32)
    _core.widen_rows(out, bits.view(np.uint8), 1, 65536, "F16", 0)
    assert np.array_equal(out[0], bits.view(np.float16).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_against_float64(isa, dtype, direction):
    rng = np.random.default_rng(2)
    for m, n, k in shapes_of(dtype, SHAPES):
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
@pytest.mark.parametrize("dtype", ["F32", "Q4_1", "Q6_K"])
def test_threads_do_not_change_a_bit(isa, dtype, direction):
    rng = np.random.default_rng(4)
    before = _core.get_num_threads()
    try:
        for m, n, k in shapes_of(dtype, [(1, 576, 192), (7, 192, 576), (300, 200, 576)]):
            data, _ = make_weight(rng, dtype, n, k)
            x = rng.standard_normal((m, k if direction == "forward" else n)).astype(np.float32)
            outs = []
            for threads in (1, 2, 3):
                _core.set_num_threads(threads)
                outs.append(product(x, data, n, k, dtype, direction=direction))
            assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2])
    finally:
        _core.set_num_threads(before)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_general_product_against_float64(isa, ta, tb):
    rng = np.random.default_rng(11)
    shapes = [(1, 5, 3), (7, 33, 64), (40, 8, 700), (200, 97, 8), (33, 64, 1201), (3, 17, 16)]
    for m, n, k in shapes:
        a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
        exact, scale = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
        stored_a, stored_b = (np.ascontiguousarray(x.T) if turned else x for x, turned in ((a, ta), (b, tb)))
        for alpha, beta in ((1, 0), (1, 1), (0.7, 1), (2, 0.5)):
            padded = np.full((m + 2, n + 3), 77, np.float32)
            c = padded[1:-1, 1:-2]
            before = rng.standard_normal((m, n)).astype(np.float32) if beta else np.full((m, n), np.nan, np.float32)
            c[:] = before
            _core._sgemm(c, stored_a, stored_b, ta, tb, alpha, beta)
            expected = alpha * exact + (beta * before if beta else 0)
            bound = (k + 6) * 2.0**-24 * (alpha * scale + np.abs(expected))
            assert (np.abs(c - expected) <= bound).all()
            c[:] = 77
            assert (padded == 77).all()


def test_openblas_can_stand_beside_our_kernels():
    data, w = make_weight(np.random.default_rng(15), "Q8_0", 70, 96)
    x = np.random.default_rng(16).standard_normal((40, 96)).astype(np.float32)
    try:
        _core._linear_openblas(True)
        got = product(x, data, 70, 96, "Q8_0")
    finally:
        _core._linear_openblas(False)
    assert np.allclose(got, x @ w.T, rtol=1e-4, atol=1e-4)


# ---- int16 and the bfloat16 family: every kernel of the list by itself ----

STORED = ("Q8_0", "Q4_0", "Q4_1")  # int16's forward products read their integers as they are
FEW = 128  # products of at most this many rows may run in float32 (the kernel's small_rows)
ROUNDED_SHAPES = [(FEW + 1, 1, 32), (130, 31, 64), (133, 100, 576), (131, 33, 2112), (135, 2180, 64)]
# The last two cross the ranges of the depth: 576, of tiles 2048.
KERNELS = {name: compute for name, compute, _ in _core.product_kernels() if compute != "float32"}
SMALL_ROWS = {"avx2_int16": 128, "avx512_vnni_int16": 32, "avx512_bfloat16": 32, "portable_int16": 32}  # tiles: 8


FORCED = [""]  # the kernels in force, the last one on top


@contextlib.contextmanager
def forced(name):
    """This kernel serves its compute type; skips, by name, where the machine or JPO_CPU lacks what it needs."""
    if not _core._linear_force(name):
        pytest.skip(f"{name} needs a feature that this machine lacks or JPO_CPU leaves out")
    FORCED.append(name)
    try:
        yield
    finally:
        FORCED.pop()
        _core._linear_force(FORCED[-1])


@pytest.fixture(params=KERNELS)
def kernel(request, set_isa):
    """Each kernel that rounds, at the level that it belongs to."""
    set_isa({"portable": "generic", "avx2": "avx2"}.get(request.param.split("_")[0], "avx512"))
    with forced(request.param):
        yield request.param


@pytest.fixture
def int16_kernel(kernel):
    if KERNELS[kernel] != "int16":
        pytest.skip(f"{kernel} is no kernel of int16")
    return kernel


def relative_bound(compute, dtype, depth):
    """Of the bfloat16 family, relative to the sum of absolute products: rounding of x, of W, of the sums."""
    half = 2.0**-8  # a value rounded to 8 bits
    rows = half if compute == "bfloat16" else half**2
    weights = 0 if dtype == "BF16" else half if compute != "bfloat16x3" else 2 * half**2  # its rest times that of x
    return rows + weights + rows * half + (2 * depth + 4) * 2.0**-24


def test_compute_types_without_their_instructions_are_refused_by_name():
    code = """
import numpy as np
from jpo import _core
for compute, _, lacking in _core.compute_types():
    try:
        _core._linear_product(np.empty((9, 1), "f4"), np.ones((9, 32), "f4"), np.zeros(128, "u1"), 1, 32, "F32", compute)
        print(compute, "runs" if lacking is None else "runs in spite of " + lacking)
    except NotImplementedError as error:
        print(compute, error if lacking in str(error) else "another reason")
"""
    runs = {}
    for level in ("generic", "-amx"):
        environment = {**os.environ, "JPO_CPU": level}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        runs[level] = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert runs["generic"]["float32"] == "runs" and "avx2 or avx512_vnni" in runs["generic"]["int16"]
    for compute in ("bfloat16", "bfloat16x2", "bfloat16x3"):
        assert f'compute="{compute}" needs the processor\'s matrix tiles (amx)' in runs["generic"][compute]
    for compute in ("bfloat16x2", "bfloat16x3"):
        assert 'use compute="float32" or "auto"' in runs["-amx"][compute]


def quantization_bound(x, w, stored):
    """Of x (M, D) times w (D, C) where blocks of 32 along D are rounded to integers and a scale on both sides: 16383
    and 4095 at most, or 32767 beside the stored integers of w."""
    m, depth = x.shape
    pad = -depth % 32
    x, w = np.pad(np.abs(x), ((0, 0), (0, pad))), np.pad(np.abs(w), ((0, pad), (0, 0)))
    half_x = np.repeat(x.reshape(m, -1, 32).max(-1), 32, 1) / (32767 if stored else 16383) * 0.51
    half_w = 0 * w if stored else np.repeat(w.reshape(-1, 32, w.shape[1]).max(1), 32, 0) / 4095 * 0.51
    return x @ half_w + half_x @ w + half_x @ half_w + (depth / 32 + 5) * 2.0**-23 * (x @ w)


COMPUTE_NUMBER = {name: number for number, (name, _, _) in enumerate(_core.compute_types())}
GRADIENT_ROWS = 64  # weights' gradients over fewer run in float32


def test_rounded_weight_gradient_against_float64(kernel):
    """dY^T X by the compute type's kernel: both sides are activations, so that bfloat16x2 runs as bfloat16x3 where that
    is served, else in float32; small ones run in float32 too, bit for bit."""
    compute, rng = KERNELS[kernel], np.random.default_rng(8)
    served = [name for name, _, lacking in _core.compute_types() if lacking is None]
    runs = compute if compute != "bfloat16x2" else "bfloat16x3" if "bfloat16x3" in served else "float32"
    for m, n, k in ((GRADIENT_ROWS, 130, 32), (70, 129, 49), (700, 150, 96), (GRADIENT_ROWS - 1, 130, 32), (90, 8, 32)):
        dy = (rng.standard_normal((m, n)) * np.exp(rng.standard_normal(n) * 3)).astype(np.float32)
        x = rng.standard_normal((m, k)).astype(np.float32)
        before = rng.standard_normal((n, k)).astype(np.float32)
        exact = dy.T.astype(np.float64) @ x
        scale = np.abs(dy.T).astype(np.float64) @ np.abs(x)
        small = m < GRADIENT_ROWS or n <= 8 or runs == "float32"
        bound = (m + 2) * 2.0**-24 * scale
        if not small:
            exactly = quantization_bound(dy.T.astype(np.float64), x.astype(np.float64), False)
            bound = exactly if runs == "int16" else relative_bound(runs, "F32", m) * scale
        outs = []
        threads = _core.get_num_threads()
        try:
            for count in (1, 2, 3):
                _core.set_num_threads(count)
                dw = before.copy()
                _core._linear_backward_weight(dw, dy, x, COMPUTE_NUMBER[compute])
                outs.append(dw)
        finally:
            _core.set_num_threads(threads)
        assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2])
        assert (np.abs(outs[0] - (exact + before)) <= bound + 2.0**-22 * (np.abs(before) + scale)).all()
        plain = before.copy()
        _core._linear_backward_weight(plain, dy, x)
        assert np.array_equal(outs[0], plain) == small
        wide = np.zeros((m, k + 3), np.float32)
        wide[:, :k] = x
        dw = before.copy()
        _core._linear_backward_weight(dw, dy, wide[:, :k], COMPUTE_NUMBER[compute])  # rows apart: float32
        assert np.array_equal(dw, plain)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_against_float64(kernel, dtype, direction):
    compute = KERNELS[kernel]
    rng = np.random.default_rng(6)
    for m, n, k in shapes_of(dtype, ROUNDED_SHAPES):
        data, w = make_weight(rng, dtype, n, k)
        w = w if direction == "backward" else w.T
        x = (rng.standard_normal((m, w.shape[0])) * np.exp(rng.standard_normal((m, 1)) * 3)).astype(np.float32)
        exact, scale = x.astype(np.float64) @ w, np.abs(x).astype(np.float64) @ np.abs(w)
        stored = direction == "forward" and dtype in STORED
        bound = quantization_bound(x.astype(np.float64), w, stored)
        if stored and dtype == "Q4_1":  # sums of q x and of x are taken apart: each may be larger than their difference
            bound += (k / 32 + 5) * 2.0**-22 * (np.abs(x) @ (16 * np.repeat(largest_d(data, n, k, dtype), 32, 1).T))
        if compute != "int16":
            bound = relative_bound(compute, dtype, w.shape[0]) * scale
        got = product(x, data, n, k, dtype, compute, direction)
        assert (np.abs(got - exact) <= bound).all()
        assert not np.array_equal(got, product(x, data, n, k, dtype, "float32", direction))  # really rounded
        before = rng.standard_normal(exact.shape).astype(np.float32)
        again = product(x, data, n, k, dtype, compute, direction, out=before)
        bound = 4 * 2.0**-24 * (scale + np.abs(before))  # the sum is added once
        if kernel.startswith(("amx", "portable_bfloat16")):
            bound = going_on_bound(compute, x.astype(np.float64), w, before)
        assert (np.abs(again - (got + before)) <= bound).all()


def going_on_bound(compute, x, w, before):
    """Of the difference between a tile's sum that begins at `before` and one that begins at zero, plus `before`.

    Both add the same terms, one for each product of a block of 32 along the depth, so that they differ by their
    roundings alone: each at most 2^-24 of the sum there, which is no larger than |before| (in the first) and the
    absolute products up to this block. One more rounding is that of the test's own addition. Values rounded to bfloat16
    are up to 1 + 2^-8 times as large, on both sides.
    """
    blocks = np.stack([np.abs(x[:, d : d + 32]) @ np.abs(w[d : d + 32]) for d in range(0, x.shape[1], 32)])
    sums = np.cumsum(blocks, 0) * (1 + 2.0**-8) ** 2
    products = {"bfloat16": 1, "bfloat16x2": 2, "bfloat16x3": 3}[compute]
    sizes = products * (len(sums) * np.abs(before) + 2 * sums.sum(0)) + np.abs(before) + sums[-1]
    return sizes * 2.0**-24 * 1.001  # the roundings of sums that were rounded before


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_equal_their_definition_bit_for_bit(kernel, dtype, direction):
    """Integers, and tiles: zeros, numbers near the smallest and the largest, NaN and infinity among them."""
    compute = KERNELS[kernel]
    if kernel.startswith("portable"):
        pytest.skip(f"{kernel} is the definition")
    if kernel == "avx512_bfloat16":
        pytest.skip("sums in another order than the tiles")
    rng = np.random.default_rng(7)
    for m, n, k in shapes_of(dtype, ROUNDED_SHAPES):
        data, _ = make_weight(rng, dtype, n, k)
        x = rng.standard_normal((m, k if direction == "forward" else n)).astype(np.float32)
        x[3, :] = 0
        x[4, :] *= 2.0**-130  # subnormal and below the smallest scale
        if compute != "int16":
            x[5, :] *= 2.0**-126  # about the smallest normal number: products, sums and rests below it are zero
            x[6, :] = rng.integers(0, 1 << 32, x.shape[1], dtype=np.uint32).view(np.float32)  # any bits
        got = product(x, data, n, k, dtype, compute, direction)
        with forced("portable_" + compute):
            expected = product(x, data, n, k, dtype, compute, direction)
        assert np.array_equal(got, expected, equal_nan=True)
        assert (got[3:5] == 0).all()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_int16_extremes_do_not_overflow(int16_kernel, direction):
    """32 products of the largest magnitudes with one sign: the largest sum of a block."""
    for x_sign, w_sign in ((1, 1), (1, -1), (-1, -1)):
        x, w = np.full((FEW + 1, 64), 8191.0 * x_sign, np.float32), np.full((64, 64), 8191.0 * w_sign, np.float32)
        got = product(x, w.view(np.uint8).reshape(-1), 64, 64, "F32", "int16", direction)
        exact = float(np.float32(32 * 8191**2)) * 2 * x_sign * w_sign
        assert (got == exact).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_activation_spoils_its_row_and_no_other(kernel, bad):
    compute = KERNELS[kernel]
    rng = np.random.default_rng(8)
    data, _ = make_weight(rng, "Q8_0", 40, 96)
    for direction, width in (("forward", 96), ("backward", 40)):
        x = rng.standard_normal((FEW + 1, width)).astype(np.float32)
        sound = product(x, data, 40, 96, "Q8_0", compute, direction)
        x[5, 17] = bad
        got = product(x, data, 40, 96, "Q8_0", compute, direction)
        assert not np.isfinite(got[5]).any()
        assert compute != "int16" or np.isnan(got[5]).all()
        assert np.array_equal(np.delete(got, 5, 0), np.delete(sound, 5, 0))


def test_a_bad_weight_is_not_hidden(kernel):
    compute = KERNELS[kernel]
    w = np.random.default_rng(9).standard_normal((40, 64)).astype(np.float32)
    w[7, 40] = np.nan
    data = w.view(np.uint8).reshape(-1)
    got = product(np.ones((FEW + 1, 64), np.float32), data, 40, 64, "F32", compute, "forward")
    assert np.isnan(got[:, 7]).all() and np.isfinite(np.delete(got, 7, 1)).all()
    got = product(np.ones((FEW + 1, 40), np.float32), data, 40, 64, "F32", compute, "backward")
    assert np.isnan(got[:, 40]).all() and np.isfinite(np.delete(got, 40, 1)).all()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_sums_that_wait_beside_the_output_do_not_change_a_bit(kernel, direction, accumulate):
    """Rows of the output 4 kB apart, more than 1,024 of them and several ranges of the depth (ops/group.c): the bits
    of some of the rows in an output of another stride, and nothing written beside it."""
    compute, m, depth, width = KERNELS[kernel], 1100, 1224, 40
    n, k = (width, depth) if direction == "forward" else (depth, width)
    rng = np.random.default_rng(11)
    data, _ = make_weight(rng, "BF16", n, k)
    x = rng.standard_normal((m, depth)).astype(np.float32)
    buffer = np.full((m, 1024), 77, np.float32)
    start = rng.standard_normal((m, width)).astype(np.float32) if accumulate else None
    if accumulate:
        buffer[:, 8 : 8 + width] = start
    _core._linear_product(buffer[:, 8 : 8 + width], x, data, n, k, "BF16", compute, direction, accumulate)
    assert (buffer[:, :8] == 77).all() and (buffer[:, 8 + width :] == 77).all()
    for rows in (slice(0, 200), slice(960, 1100)):
        alone = product(x[rows], data, n, k, "BF16", compute, direction, start[rows] if accumulate else None)
        assert np.array_equal(buffer[rows, 8 : 8 + width], alone)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_rounded_threads_do_not_change_a_bit(kernel, direction):
    compute = KERNELS[kernel]
    rng = np.random.default_rng(10)
    threads = _core.get_num_threads()
    try:
        for m, n, k in [(140, 192, 96), (300, 200, 576)]:
            data, _ = make_weight(rng, "Q4_1", n, k)
            x = rng.standard_normal((m, k if direction == "forward" else n)).astype(np.float32)
            outs = []
            for count in (1, 2, 3):
                _core.set_num_threads(count)
                outs.append(product(x, data, n, k, "Q4_1", compute, direction))
            assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2])
    finally:
        _core.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["Q8_0", "BF16"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_small_batches_run_in_float32_or_in_stored_integers(kernel, set_isa, direction, dtype):
    compute = KERNELS[kernel]
    rows = SMALL_ROWS.get(kernel, 8)
    if (kernel, direction, dtype) == ("avx512_vnni_int16", "forward", "Q8_0"):
        pytest.skip("goes on in integers: test_a_row_of_a_product_of_stored_integers_does_not_depend_on_its_fellows")
    data, _ = make_weight(np.random.default_rng(13), dtype, 40, 96)
    x = np.random.default_rng(14).standard_normal((rows, 96 if direction == "forward" else 40)).astype(np.float32)
    got = product(x, data, 40, 96, dtype, compute, direction)
    if compute in ("bfloat16", "bfloat16x2") and "avx512" not in kernel and (direction, dtype) == ("forward", "Q8_0"):
        with forced("portable_int16"):  # what decoding does in int16
            assert np.array_equal(got, product(x, data, 40, 96, dtype, "int16", direction))
    else:
        assert np.array_equal(got, product(x, data, 40, 96, dtype, "float32", direction))


# int16 products of at most so many rows are decoding's (kernels/integers.h)
INTEGER_ROWS = {"avx512_vnni_int16": 8, "avx2_int16": 24, "portable_int16": 24}
INTEGERS = (*STORED, "Q5_0", "Q4_K", "Q5_K", "Q6_K")  # whose integers they take as they are stored


@pytest.mark.parametrize("dtype", INTEGERS)
def test_stored_integers_are_exact_and_rows_keep_16_bits(int16_kernel, dtype):
    rng = np.random.default_rng(21)
    shapes = [(1, 1, 32), (1, 7, 96), (2, 33, 576), (5, 64, 1536), (7, 40, 64)]
    most = INTEGER_ROWS[int16_kernel]
    for m, n, k in shapes_of(dtype, [*shapes, (min(16, most), 31, 608), (most, 9, 1248)]):
        data, w = make_weight(rng, dtype, n, k)
        x = (rng.standard_normal((m, k)) * np.exp(rng.standard_normal((m, 1)) * 3)).astype(np.float32)
        wide, weights = x.astype(np.float64), np.abs(w.T)
        exact, scale = wide @ w.T, np.abs(wide) @ weights
        step = np.repeat(np.abs(wide).reshape(m, -1, 32).max(-1), 32, 1) / 32767 * 0.51
        # sums of q x and of x are taken apart: each may be larger than their difference
        apart = scale if dtype in ("Q8_0", "Q6_K") else np.abs(wide) @ (weights + widest(w).T)
        bound = step @ weights + (k / 64 + 12) * 2.0**-24 * apart
        got = product(x, data, n, k, dtype, "int16")
        assert (np.abs(got - exact) <= bound).all()
        before = rng.standard_normal(exact.shape).astype(np.float32)
        again = product(x, data, n, k, dtype, "int16", out=before)
        np.testing.assert_array_equal(again, got + before)
        with forced("portable_int16"):
            assert np.array_equal(got, product(x, data, n, k, dtype, "int16"))
        alone = np.concatenate([product(x[i : i + 1], data, n, k, dtype, "int16") for i in range(m)])
        assert np.array_equal(got, alone)  # a row does not depend on the rows beside it


@pytest.mark.parametrize("dtype", STORED)
def test_a_row_of_a_product_of_stored_integers_does_not_depend_on_its_fellows(set_isa, dtype):
    """Beyond decoding's rows AVX-512 goes on in integers, whatever their number."""
    rng = np.random.default_rng(23)
    for n, k in [(33, 96), (70, 608), (9, 1248)]:
        data, _ = make_weight(rng, dtype, n, k)
        x = rng.standard_normal((140, k)).astype(np.float32)
        with forced("portable_int16"):
            expected = product(x, data, n, k, dtype, "int16")
        set_isa("avx512")
        with forced("avx512_vnni_int16"):
            whole = product(x, data, n, k, dtype, "int16")
            for m in (9, 10, 17, 32, 33):
                assert np.array_equal(product(x[:m], data, n, k, dtype, "int16"), whole[:m])
        assert np.array_equal(whole, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_few_does_not_depend_on_its_fellows(isa, dtype):
    """Rows decoded into registers and rows that share widened ones are summed in one order."""
    rng = np.random.default_rng(24)
    for _, n, k in shapes_of(dtype, [(0, 7, 96), (0, 33, 608), (0, 9, 1248), (0, 5, 47), (0, 6, 650)]):
        data, _ = make_weight(rng, dtype, n, k)
        x = rng.standard_normal((8, k)).astype(np.float32)
        whole = product(x, data, n, k, dtype)
        for m in range(1, 8):
            assert np.array_equal(product(x[:m], data, n, k, dtype), whole[:m]), (n, k, m)


def widest(w):
    """Bound of |d q| + |m| in each block of 32 of (n, k) values d q + m: thrice their range and their largest."""
    blocks = w.reshape(len(w), -1, 32)
    span = 3 * (blocks.max(-1) - blocks.min(-1)) + np.abs(blocks).max(-1)
    return np.repeat(span, 32, 1)


def largest_d(data, n, k, dtype):
    """|d| of each block, (n, k / 32)."""
    blocks = data.reshape(n, k // 32, BLOCKS[dtype][1])
    return np.abs(np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float64))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_stored_integers_at_their_extremes(int16_kernel, dtype):
    """Every integer at its largest, on both sides: lanes stay exact."""
    for fill in (0x00, 0x80, 0x7F, 0xFF):
        k = 3 * BLOCKS[dtype][0]
        blocks = np.full((4, 3, BLOCKS[dtype][1]), fill, np.uint8)
        for number, at in zip((1, 0), BLOCKS[dtype][2], strict=False):
            blocks[..., at : at + 2] = np.full(1, number, np.float16).view(np.uint8)
        data = blocks.reshape(-1)
        w = np.empty((4, k), np.float32)
        _core.widen_rows(w, data, 4, k, dtype, 0)
        for value in (32767.0, -32767.0):
            x = np.full((2, k), value, np.float32)
            exact = x.astype(np.float64) @ w.T.astype(np.float64)
            np.testing.assert_allclose(product(x, data, 4, k, dtype, "int16"), exact, rtol=2e-6, atol=0)
            if dtype not in STORED:
                continue  # many rows round the weights
            many = np.full((FEW + 1, k), value, np.float32)
            np.testing.assert_allclose(product(many, data, 4, k, dtype, "int16")[:2], exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_stored_integers_with_zero_tiny_and_bad_rows(int16_kernel, dtype):
    rng = np.random.default_rng(22)
    k = shapes_of(dtype, [(0, 0, 96)])[0][2]
    data, _ = make_weight(rng, dtype, 10, k)
    x = rng.standard_normal((6, k)).astype(np.float32)
    sound = product(x, data, 10, k, dtype, "int16")
    x[1] = 0
    x[2] *= 2.0**-130
    x[3, 40], x[4, 95], x[5, 0] = np.nan, np.inf, -np.inf
    got = product(x, data, 10, k, dtype, "int16")
    assert np.array_equal(got[0], sound[0]) and (got[1:3] == 0).all() and np.isnan(got[3:]).all()


@pytest.mark.parametrize("dtype", ["F32", "Q4_1", "Q2_K", "Q5_K"])
def test_packed_float32_tiles_equal_the_whole_product(isa, dtype):
    check_packed_tiles("float32", dtype)


@pytest.mark.parametrize("dtype", ["F32", "Q4_1", "Q2_K", "Q5_K"])
def test_packed_tiles_equal_the_whole_product(kernel, dtype):
    check_packed_tiles(KERNELS[kernel], dtype)


def check_packed_tiles(compute, dtype):
    """A tile of rows and columns, its depth in several ranges, gives the outputs of the product with that part."""
    rng = np.random.default_rng(12)
    n, k, m = 1300, 1280, 35
    data, w = make_weight(rng, dtype, n, k)
    for row0, rows, column0, columns, backward in [
        (7, 100, 0, k, False),
        (0, 33, 64, 96, False),
        (3, 1201, 0, 64, True),
        (640, 65, 32, 96, True),
    ]:
        part = w[row0 : row0 + rows, column0 : column0 + columns]
        part = part if backward else part.T
        x = rng.standard_normal((m, part.shape[0])).astype(np.float32)
        out = rng.standard_normal((m, part.shape[1])).astype(np.float32)
        before = out.copy()
        _core._packed_tile(out, x, data, n, k, dtype, compute, row0, rows, column0, columns, backward, True)
        scale = np.abs(x).astype(np.float64) @ np.abs(part) + np.abs(before)
        bound = (part.shape[0] + 4) * 2.0**-24 * scale
        if compute == "int16":
            bound = bound + quantization_bound(x.astype(np.float64), part, dtype in STORED and not backward)
        elif compute != "float32":
            bound = bound + relative_bound(compute, dtype, part.shape[0]) * scale
        assert (np.abs(out - before - x.astype(np.float64) @ part) <= bound).all()


def test_empty_batch_is_no_work():
    data, _ = make_weight(np.random.default_rng(5), "Q8_0", 8, 32)
    out = np.empty((0, 8), np.float32)
    _core._linear_product(out, np.empty((0, 32), np.float32), data, 8, 32, "Q8_0")
