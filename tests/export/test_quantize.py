"""Quantization: the bits of the gguf package and of ggml's reference quantizers."""

import hashlib

import numpy as np
import pytest

from jpo import _core
from jpo.formats.stored import BLOCKS, StoredTensor

gguf = pytest.importorskip("gguf")


def values(kind, rows=64, width=512, seed=0):
    """Rows that meet every branch: usual weights, constant and zero groups, outliers, one sign, all sizes."""
    words = np.random.PCG64(seed).random_raw(rows * width)
    x = ((words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - 1).reshape(rows, width)
    x = x * np.abs(x)  # more small values than large ones, as weights have
    x[1], x[2], x[3] = 0, 0.25, -0.25
    x[4, :32], x[5, ::7], x[6] = 0, x[5, ::7] * 50, np.abs(x[6])
    x[7], x[8], x[9] = -np.abs(x[7]), x[8] * np.float32(1e-5), x[9] * np.float32(1e3)
    x[10, 3] = 100
    return x.astype(np.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q5_1"])
def test_the_bits_of_the_gguf_package(kind):
    for seed in range(3):
        x = values(kind, seed=seed)
        with np.errstate(all="ignore"):
            expected = gguf.quants.quantize(x, getattr(gguf.GGMLQuantizationType, kind))
        assert bytes(_core.quantize_rows(x, kind)) == expected.tobytes()


def test_halves_of_every_size():
    x = np.arange(0, 1 << 32, 65537, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = x[np.isfinite(x)].reshape(1, -1)
    with np.errstate(over="ignore"):
        assert bytes(_core.quantize_rows(x, "F16")) == x.astype("<f2").tobytes()


# SHA-256 of the blocks that quantize_row_*_ref in libggml-base of llama-cpp-python 0.3.36 (x86-64, no FMA) makes of
# values()
REFERENCE = {
    "Q4_K": "03bc8e2904a1599a7b0fc1745b77ec1d94d0286482c959819c779acac35e95b7",
    "Q5_K": "bee2662f99c198b4053530ae49d4bd410d9bbce1ff95519d04494e920dcf2b38",
    "Q6_K": "40a937345d9fc1071c07de0f5781663dfd6b33f442b3679d666b97b2b9530db1",
}


@pytest.mark.parametrize("kind", REFERENCE)
def test_the_bits_of_ggmls_reference(kind):
    assert hashlib.sha256(_core.quantize_rows(values(kind), kind)).hexdigest() == REFERENCE[kind]


@pytest.mark.parametrize("kind", _core.QUANTIZED)
def test_what_comes_back(kind):
    """Within the type's step of the block's range, read by our own dequantizer and by the gguf package's."""
    x = np.delete(values(kind), 8, 0)  # whose size is below a float16 factor's steps
    raw = np.frombuffer(_core.quantize_rows(x, kind), np.uint8)
    ours = StoredTensor("w", kind, x.shape, raw).float32()
    theirs = gguf.quants.dequantize(raw.reshape(len(x), -1), getattr(gguf.GGMLQuantizationType, kind))
    np.testing.assert_array_equal(ours, theirs.reshape(x.shape))
    block, size = BLOCKS[kind]
    bits, block = 8 * size / block, max(block, 32)
    size = np.abs(x).reshape(len(x), -1, block).max(-1, keepdims=True)
    error = np.abs(ours - x).reshape(len(x), -1, block)
    assert (error <= size * 2.5 * 2.0 ** -min(bits - 1, 7) + 1e-7).all()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K"])
def test_the_number_of_threads_changes_nothing(kind):
    x, before = values(kind, rows=700), _core.get_num_threads()
    found = set()
    try:
        for threads in (1, 2, 3):
            _core.set_num_threads(threads)
            found.add(bytes(_core.quantize_rows(x, kind)))
    finally:
        _core.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("given", "kind", "named"),
    [
        (np.zeros((2, 33), np.float32), "Q8_0", "multiple of 32"),
        (np.zeros((2, 32), np.float32), "Q4_K", "multiple of 256"),
        (np.zeros((2, 256), np.float32), "Q2_K", "Q2_K is not written"),
        (np.zeros((2, 256), np.float32), "nothing", "nothing is not written"),
        (np.zeros((2, 64), np.float32)[:, :32], "Q8_0", "contiguous"),
    ],
)
def test_refusals(given, kind, named):
    with pytest.raises(ValueError, match=named):
        _core.quantize_rows(given, kind)
