"""Writing GGUF files: header, metadata, then the tensors' bytes one piece after another.

Knows the container (version 3, the GGUF specification in ggml's docs/gguf.md); never what keys or tensors mean.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo.disk import write_atomic
from jpo.errors import JpoError
from jpo.formats.gguf import read_gguf
from jpo.formats.stored import BLOCKS

ALIGNMENT = 32
# ggml's numbers of tensor types
TYPE_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
}  # fmt: skip
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
Piece = bytes | bytearray  # of a tensor
Entry = bytes | memoryview  # a metadata value as the file holds it: its type, then its bytes


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to write: its bytes come in pieces, made when the file has come to them."""

    name: str
    dtype: str  # a key of BLOCKS
    shape: tuple[int, ...]  # the contiguous axis last
    pieces: Callable[[], Iterator[Piece]]

    @property
    def size(self) -> int:
        """Bytes in all."""
        values, size = BLOCKS[self.dtype]
        return int(np.prod(self.shape)) // values * size


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def u32(value: int) -> bytes:
    """A metadata value: an unsigned integer."""
    return struct.pack("<II", _U32, value)


def f32(value: float) -> bytes:
    """A metadata value: a float32."""
    return struct.pack("<If", _F32, value)


def flag(value: bool) -> bytes:
    """A metadata value: true or false."""
    return struct.pack("<I?", _BOOL, value)


def text(value: str) -> bytes:
    """A metadata value: a string."""
    return struct.pack("<I", _STRING) + _string(value)


def _array(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, count) + body


def texts(values: Sequence[str]) -> bytes:
    """A metadata value: an array of strings."""
    return _array(_STRING, len(values), b"".join(map(_string, values)))


def i32s(values: Sequence[int]) -> bytes:
    """A metadata value: an array of integers."""
    return _array(_I32, len(values), np.asarray(values, "<i4").tobytes())


def f32s(values: Sequence[float]) -> bytes:
    """A metadata value: an array of float32."""
    return _array(_F32, len(values), np.asarray(values, "<f4").tobytes())


def flags(values: Sequence[bool]) -> bytes:
    """A metadata value: an array of booleans."""
    return _array(_BOOL, len(values), np.asarray(values, "?").tobytes())


def decoded(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The metadata as a reader gives them (jpo.formats.gguf), by way of a file that holds nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "metadata.gguf")
        write_gguf(path, entries, [])
        return read_gguf(path).metadata


def _padding(size: int) -> bytes:
    return bytes(-size % ALIGNMENT)


def _header(metadata: Mapping[str, Entry], tensors: Sequence[TensorPlan]) -> Iterator[Entry]:
    yield struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, entry in metadata.items():
        yield _string(key)
        yield entry
    offset = 0
    for tensor in tensors:
        yield _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        yield struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
        yield struct.pack("<IQ", TYPE_NUMBERS[tensor.dtype], offset)
        offset += tensor.size + len(_padding(tensor.size))


def write_gguf(path: str, metadata: Mapping[str, Entry], tensors: Iterable[TensorPlan]) -> None:
    """Writes the file beside `path` and renames it: readers see the old file or the whole new one."""
    plans = list(tensors)
    names = [plan.name for plan in plans]
    if len(set(names)) != len(names):
        raise JpoError(f"{path}: tensor {max(names, key=names.count)} would stand twice")
    metadata = {key: entry for key, entry in metadata.items() if key != "general.alignment"}

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            for part in _header(metadata, plans):
                file.write(part)
            file.write(_padding(file.tell()))
            for plan in plans:
                start = file.tell()
                for piece in plan.pieces():
                    file.write(piece)
                if file.tell() - start != plan.size:
                    raise JpoError(f"{path}: tensor {plan.name}: {file.tell() - start} bytes instead of {plan.size}")
                file.write(_padding(plan.size))

    write_atomic(path, write)
