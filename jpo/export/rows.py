"""A tensor to be written, some rows at a time: its stored values in the order that the file wants, and updates on
them.

Nothing of a tensor's size is held but the piece in hand, so that a model of any size converts in little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jpo import _core
from jpo.errors import FormatError, JpoError
from jpo.export.changes import Change
from jpo.export.container import Piece
from jpo.formats.stored import BLOCKS, StoredTensor

_PIECE_VALUES = 1 << 20  # float32 values held at a time, of the tensor and of its update each


@dataclass(frozen=True)
class Update:
    """A change in a file's rows: rows first..first + len(order) - 1 get the change's rows `order`."""

    change: Change
    first: int
    order: np.ndarray  # rows of the change, in the file's order
    transposed: bool = False  # the file's rows are the module's inputs, `order` counts them

    def add(self, values: np.ndarray, start: int) -> None:
        """values (n, width), the file's rows from `start` on, += this change."""
        low, high = max(start, self.first), min(start + len(values), self.first + len(self.order))
        if low >= high:
            return
        chosen = self.order[low - self.first : high - self.first]
        rows: slice | np.ndarray = chosen
        if chosen[-1] - chosen[0] == len(chosen) - 1 and (np.diff(chosen) == 1).all():
            rows = slice(int(chosen[0]), int(chosen[-1]) + 1)
        change = self.change.columns(rows) if self.transposed else self.change.rows(rows)  # type: ignore[arg-type]
        values[low - start : high - start] += change


@dataclass(frozen=True)
class Rows:
    """The values of one tensor of a file: those of `tensor`, reordered, with `added` on each, and with the updates."""

    tensor: StoredTensor
    order: np.ndarray | None = None  # row i is the tensor's row order[i]
    turned: bool = False  # rows are the tensor's columns
    added: float = 0.0
    updates: Sequence[Update] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The file's shape, the contiguous axis last."""
        return self.tensor.shape[::-1] if self.turned else self.tensor.shape

    @property
    def width(self) -> int:
        """Values of a row; a vector's rows are its values."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    def _stored(self, start: int, stop: int) -> StoredTensor:
        """Rows start..stop - 1 as they are stored."""
        tensor = self.tensor.by_rows()
        if self.turned and not tensor.rows_are_outputs:
            size = BLOCKS[tensor.dtype][1]  # of a scalar: only those stand as (inputs, outputs)
            values = tensor.data.reshape(*tensor.shape, size)[:, start:stop].swapaxes(0, 1)
            return StoredTensor(tensor.name, tensor.dtype, (stop - start, self.width), _flat(values))
        rows = tensor.data.reshape(self.shape[0], -1)
        data = rows[start:stop] if self.order is None else rows[self.order[start:stop]]
        return StoredTensor(tensor.name, tensor.dtype, (stop - start, self.width), _flat(data))

    def float32(self, start: int, stop: int) -> np.ndarray:
        """Rows (n, width) float32, updates included."""
        if self.tensor.rows_are_outputs and not self.turned:  # (inputs, outputs) of bytes that stand the other way
            values = np.ascontiguousarray(self.tensor.float32()[start:stop])
        else:
            values = self._stored(start, stop).float32()
        if self.added:
            values += np.float32(self.added)
        for update in self.updates:
            update.add(values, start)
        return values

    def _unchanged(self, dtype: str) -> bool:
        own = dtype == self.tensor.by_rows().dtype and not self.updates and not self.added
        return own and (self.turned or not self.tensor.rows_are_outputs)

    def pieces(self, where: str, name: str, dtype: str, done: Callable[[], None] = lambda: None) -> Iterator[Piece]:
        """The tensor's bytes as `dtype`, in pieces. FormatError naming the tensor where a value is not finite, or
        becomes so. done: called behind the last piece."""
        step = max(1, _PIECE_VALUES // self.width)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            raw: Piece
            if self._unchanged(dtype):
                raw = self._stored(start, stop).data.tobytes()
                _check(where, name, raw, dtype, f"in {dtype}")
            else:
                values = self.float32(start, stop)
                _check(where, name, values.view(np.uint8).reshape(-1), "F32", "after merging")
                raw = _core.quantize_rows(values if len(self.shape) > 1 else values.reshape(1, -1), dtype)
                _check(where, name, raw, dtype, f"beyond what {dtype} holds; choose a --type of more range (f32, bf16)")
            yield raw
        done()


def _flat(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).reshape(-1)


def _check(where: str, name: str, raw: Piece | np.ndarray, dtype: str, what: str) -> None:
    if _core.first_nonfinite(raw, dtype) >= 0:  # type: ignore[arg-type]
        raise FormatError(f"{where}: tensor {name}: a value is NaN or infinite {what}")


def check_type(name: str, dtype: str, width: int) -> None:
    """JpoError where rows of this width cannot be written as `dtype`."""
    if dtype not in _core.QUANTIZED:
        raise JpoError(
            f"tensor {name}: its type {dtype} is read but not written, and the adapter changes it; give --type, for "
            "example q8_0"
        )
    if width % BLOCKS[dtype][0]:
        raise JpoError(
            f"tensor {name}: rows of {width} values are no multiple of {dtype}'s block of {BLOCKS[dtype][0]}"
        )
