"""NaN and infinity in stored weights of every type: found at every place, and nothing else is."""

import numpy as np
import pytest
from ops.test_linear import DTYPES, SCALARS, make_weight
from reference.quants import BLOCKS

from jpo import _core


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])  # +inf, -inf, NaN as float16
def test_the_first_bad_block_is_found(dtype, bits):
    rng = np.random.default_rng(0)
    rows, k = 3, 2560
    data, _ = make_weight(rng, dtype, rows, k)
    assert _core.first_nonfinite(data, dtype) == -1
    values, size = _core.DTYPES[dtype]
    blocks = rows * k // values
    for block in sorted({0, 1, blocks // 2, blocks - 1}):
        for at in BLOCKS[dtype][2] if dtype in BLOCKS else (0,):
            bad = data.copy()
            word = np.array([bits], "<u2")
            if dtype in ("F32", "BF16"):
                word = np.array([{0x7C00: 0x7F80, 0xFC00: 0xFF80, 0x7E01: 0x7FC1}[bits]], "<u2")
                at = size - 2
            bad[block * size + at : block * size + at + 2] = word.view(np.uint8)
            again = bad.copy()
            again[-size:] = bad[block * size : (block + 1) * size]  # another one behind it
            assert _core.first_nonfinite(bad, dtype) == _core.first_nonfinite(again, dtype) == block * values


def test_large_finite_values_are_finite():
    for dtype, values in (("F32", np.float32), ("F16", np.float16)):
        data = np.full(3000, np.finfo(values).max, values)
        assert _core.first_nonfinite(data.view(np.uint8), dtype) == -1
    assert _core.first_nonfinite(np.full(3000, 0x7F7F, np.uint16).view(np.uint8), "BF16") == -1


def test_large_tensors_and_threads():
    data = np.zeros(5_000_000, np.float32)
    data[4_999_999] = np.nan
    before = _core.get_num_threads()
    try:
        for threads in (1, 2, 3):
            _core.set_num_threads(threads)
            assert _core.first_nonfinite(data.view(np.uint8), "F32") == 4_999_999
        data[123_456] = np.inf
        assert _core.first_nonfinite(data.view(np.uint8), "F32") == 123_456
    finally:
        _core.set_num_threads(before)


def test_wrong_arguments_are_named():
    assert _core.first_nonfinite(np.empty(0, np.uint8), "Q4_K") == -1
    with pytest.raises(ValueError, match="no whole blocks of Q4_K"):
        _core.first_nonfinite(np.zeros(143, np.uint8), "Q4_K")
    with pytest.raises(ValueError, match="name in jpo._core.DTYPES"):
        _core.first_nonfinite(np.zeros(143, np.uint8), "Q4_X")
    assert set(SCALARS) | set(BLOCKS) == set(_core.DTYPES)
