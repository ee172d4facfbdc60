"""What a model file gives: named tensors as stored and a checkpoint that bundles them with config and tokenizer.

Knows sizes and layouts of the stored types; never which file format they came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jpo.errors import FormatError

if TYPE_CHECKING:
    from jpo.tokenization import Tokenizer

# name -> (values per block, bytes per block); the same list as csrc/base/dtype.h
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "BF16": (1, 2),
    "F16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file stores it: row-major, blocks of quantized types along the last axis."""

    name: str
    dtype: str  # a key of BLOCKS
    shape: tuple[int, ...]
    data: np.ndarray  # uint8, 1-D: the bytes as stored, memory-mapped where the file allows it

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last axis)."""
        values, size = BLOCKS[self.dtype]
        return self.shape[-1] // values * size if self.shape else size

    def float32(self) -> np.ndarray:
        """The values widened to float32, of this tensor's shape; a copy. For tests and small tensors."""
        return _WIDEN[self.dtype](self.data).reshape(self.shape)


@dataclass
class Checkpoint:
    """A loaded model: normalized config (see jpo.formats.config), tensors by Hugging Face name, tokenizer."""

    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    tokenizer: Tokenizer
    source: str
    generation: dict[str, Any] = field(default_factory=dict)


def tensor_bytes(where: str, name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that `shape` takes as `dtype`; FormatError where rows are no whole blocks or the shape is absurd."""
    values, size = BLOCKS[dtype]
    count = 1
    for extent in shape:
        if not 0 < extent < 1 << 48:
            raise FormatError(f"{where}: tensor {name}: dimension {extent} of shape {shape} is not a plausible size")
        count *= extent
    if shape and shape[-1] % values:
        raise FormatError(
            f"{where}: tensor {name}: rows of {shape[-1]} values are no multiple of {dtype}'s block of {values}"
        )
    return count // values * size


def aligned(data: np.ndarray, dtype: str) -> np.ndarray:
    """`data`, or a copy where its address is no multiple of the element's size (files may place it anywhere)."""
    step = 4 if dtype == "F32" else 2
    return data.copy() if data.ctypes.data % step else data


def _from_bf16(data: np.ndarray) -> np.ndarray:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _from_q8_0(data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, 34)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return (scale * blocks[:, 2:].view(np.int8).astype(np.float32)).ravel()


def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)  # (blocks, 32): low nibbles first


def _from_q4_0(data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, 18)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return (scale * (_nibbles(blocks[:, 2:]) - 8)).ravel()


def _from_q4_1(data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, 20)
    scale = blocks[:, :4].copy().view("<f2").astype(np.float32)  # (blocks, 2): d, m
    return (scale[:, :1] * _nibbles(blocks[:, 4:]) + scale[:, 1:]).ravel()


_WIDEN = {
    "F32": lambda data: data.view("<f4").astype(np.float32),
    "F16": lambda data: data.view("<f2").astype(np.float32),
    "BF16": _from_bf16,
    "Q8_0": _from_q8_0,
    "Q4_0": _from_q4_0,
    "Q4_1": _from_q4_1,
}
