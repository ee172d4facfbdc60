"""GGUF's quantized blocks by the plainest rule: one value of all blocks at a time, in float32.

Written from the layouts in ggml-common.h and apart from jpo's kernels. `BLOCKS`: name -> (values, bytes, where float16
factor and minimum stand); `random_blocks` makes bytes with small finite factors, `values_of` says what bytes mean.
"""

import numpy as np

BLOCKS = {
    "Q8_0": (32, 34, (0,)),
    "Q4_0": (32, 18, (0,)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)),
    "Q2_K": (256, 84, (80, 82)),
    "Q3_K": (256, 110, (108,)),
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
    "IQ4_NL": (32, 18, (0,)),
    "IQ4_XS": (256, 136, (0,)),
}
_SIZE = {"Q5_1": 0.05, "Q4_1": 0.05, "Q2_K": 0.05, "Q3_K": 0.02, "Q4_K": 0.002, "Q5_K": 0.001, "Q6_K": 0.0005,
         "IQ4_NL": 0.01, "IQ4_XS": 0.0005}  # fmt: skip
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def _half(blocks, at):
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0].astype(np.float32)


def _six_bits(blocks, piece):
    """(scale, minimum) of Q4_K's and Q5_K's piece."""
    low, high = (lambda at: blocks[:, 4 + at].astype(np.int32)), piece - 4
    if piece < 4:
        return low(piece) & 63, low(4 + piece) & 63
    return (low(8 + high) & 15) + 16 * (low(high) >> 6), (low(8 + high) >> 4) + 16 * (low(4 + high) >> 6)


def _one(dtype, blocks, v):
    """(d, q, m or None) of value v of all blocks: x = d q + m."""
    b = blocks.astype(np.int32)
    piece, j = divmod(v, 32)
    if dtype in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"):
        d, m = _half(blocks, 0), _half(blocks, 2) if dtype in ("Q4_1", "Q5_1") else None
        first = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8, "IQ4_NL": 2}[dtype]
        if dtype == "Q8_0":
            return d, blocks[:, first + v].view(np.int8).astype(np.int32), m
        q = b[:, first + v % 16] // (16 if v >= 16 else 1) % 16
        if dtype in ("Q5_0", "Q5_1"):
            q = q + 16 * (b[:, first - 4 + v // 8] >> v % 8 & 1)
        q = _IQ4[q] if dtype == "IQ4_NL" else q - {"Q4_0": 8, "Q5_0": 16}.get(dtype, 0)
        return d, q, m
    if dtype in ("Q2_K", "Q3_K"):
        first = 16 if dtype == "Q2_K" else 32
        q = b[:, first + 32 * (v // 128) + j] >> 2 * (v // 32 % 4) & 3
        if dtype == "Q2_K":
            scale = b[:, v // 16]
            return (
                _half(blocks, 80) * (scale % 16).astype(np.float32),
                q,
                -(_half(blocks, 82) * (scale // 16).astype(np.float32)),
            )
        q = q + 4 * (b[:, j] >> v // 32 & 1) - 4
        group = v // 16
        scale = (b[:, 96 + group % 8] >> (4 if group >= 8 else 0) & 15) + 16 * (
            b[:, 104 + group % 4] >> 2 * (group // 4) & 3
        )
        return _half(blocks, 108) * (scale - 32).astype(np.float32), q, None
    if dtype in ("Q4_K", "Q5_K"):
        q = b[:, (16 if dtype == "Q4_K" else 48) + 32 * (piece // 2) + j] >> 4 * (piece % 2) & 15
        if dtype == "Q5_K":
            q = q + 16 * (b[:, 16 + j] >> piece & 1)
        scale, minimum = _six_bits(blocks, piece)
        return _half(blocks, 0) * scale.astype(np.float32), q, -(_half(blocks, 2) * minimum.astype(np.float32))
    if dtype == "Q6_K":
        half, place = divmod(v, 128)
        q = b[:, 64 * half + place % 64] >> (4 if place >= 64 else 0) & 15
        q = q + 16 * (b[:, 128 + 32 * half + j] >> 2 * (place // 32) & 3) - 32
        scale = blocks[:, 192 + v // 16].view(np.int8).astype(np.float32)
        return _half(blocks, 208) * scale, q, None
    scale = (b[:, 4 + piece // 2] >> 4 * (piece % 2) & 15) + 16 * (b[:, 2 + piece // 4] >> 2 * (piece % 4) & 3) - 32
    q = _IQ4[b[:, 8 + 16 * piece + j % 16] >> (4 if j >= 16 else 0) & 15]
    return _half(blocks, 0) * scale.astype(np.float32), q, None


def values_of(data, dtype, n, k):
    """float32 (n, k) of stored bytes."""
    values, size, _ = BLOCKS[dtype]
    blocks = np.ascontiguousarray(data).reshape(-1, size)
    out = np.empty((len(blocks), values), np.float32)
    for v in range(values):
        d, q, m = _one(dtype, blocks, v)
        out[:, v] = d * q.astype(np.float32) if m is None else d * q.astype(np.float32) + m
    return out.reshape(n, k)


def random_blocks(rng, dtype, n, k):
    """Bytes (uint8, 1-D) of a random (n, k) whose values are about 1 in size, of both signs of d."""
    values, size, halves = BLOCKS[dtype]
    blocks = rng.integers(0, 256, (n * k // values, size), dtype=np.uint8)
    for place, at in enumerate(halves):
        number = rng.standard_normal((len(blocks), 1)) * _SIZE.get(dtype, 0.05)
        if place and dtype in ("Q4_1", "Q5_1"):
            number = rng.standard_normal((len(blocks), 1))
        blocks[:, at : at + 2] = number.astype("<f2").view(np.uint8)
    return blocks.reshape(-1)
