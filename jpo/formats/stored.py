"""What a model file gives: named tensors as stored and a checkpoint that bundles them with config and tokenizer.

Knows sizes and layouts of the stored types; never which file format they came from.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jpo import _core
from jpo.errors import FormatError

if TYPE_CHECKING:
    from jpo.tokenization import Tokenizer

BLOCKS = _core.DTYPES  # name -> (values per block, bytes per block)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file stores it: row-major, blocks of quantized types along the last axis."""

    name: str
    dtype: str  # a key of BLOCKS
    shape: tuple[int, ...]
    data: np.ndarray  # uint8, 1-D: the bytes as stored, memory-mapped where the file allows it
    rows_are_outputs: bool = False  # shape is (inputs, outputs), but the bytes are those of (outputs, inputs)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last axis)."""
        values, size = BLOCKS[self.dtype]
        return self.shape[-1] // values * size if self.shape else size

    def float32(self) -> np.ndarray:
        """The values widened to float32, of this tensor's shape; a copy. One tensor at a time: it may be large."""
        shape = self.shape[::-1] if self.rows_are_outputs else self.shape
        width = shape[-1] if shape else 1
        rows = int(np.prod(shape)) // max(width, 1)
        values = np.empty((rows, width), np.float32)
        _core.widen_rows(values, np.ascontiguousarray(self.data), rows, width, self.dtype, 0)
        return values.reshape(shape).T if self.rows_are_outputs else values.reshape(shape)

    def by_rows(self) -> StoredTensor:
        """This tensor, cut wherever a row (of a vector: a value) ends: a vector of blocks is widened to float32."""
        if len(self.shape) > 1 or BLOCKS[self.dtype][0] == 1:
            return self
        return StoredTensor(self.name, "F32", self.shape, self.float32().view(np.uint8).reshape(-1))

    def rows(self, name: str, start: int, count: int) -> StoredTensor:
        """Rows (of a vector: values) start..start + count - 1 under another name: a view, but of a vector of blocks."""
        if (start, count) == (0, self.shape[0]):
            return StoredTensor(name, self.dtype, self.shape, self.data)
        whole = self.by_rows()
        size = whole.data.size // self.shape[0]
        return StoredTensor(
            name, whole.dtype, (count, *self.shape[1:]), whole.data[start * size : (start + count) * size]
        )


@dataclass
class Checkpoint:
    """A loaded model: normalized config (see jpo.formats.config), tensors by Hugging Face name, tokenizer."""

    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    tokenizer: Tokenizer
    source: str
    generation: dict[str, Any] = field(default_factory=dict)
    maps: list[mmap.mmap] = field(init=False, repr=False)  # of the files that tensors are views into

    def __post_init__(self) -> None:
        self.maps = list({id(found): found for found in map(_map_of, self.tensors.values()) if found}.values())

    def check_files(self) -> None:
        """FormatError where a file that tensors are views into became shorter: reading on would end the process."""
        for found in self.maps:
            if found.size() < len(found):
                raise FormatError(
                    f"{self.source}: the file was {len(found)} bytes when it was loaded and now has {found.size()}: load "
                    "the model again, and replace model files by renaming, never in place"
                )


def _map_of(tensor: StoredTensor) -> mmap.mmap | None:
    """The map of the file that a tensor is a view into; None for a copy."""
    base = tensor.data.base
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    return base if isinstance(base, mmap.mmap) else None


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
