"""GGUF files: a bounds-checked reader over a memory map.

Every count, length and offset is checked against the file before it is used, so a malformed file costs an error and
never a large allocation. Knows the container (versions 2 and 3); the model inside is jpo.formats.gguf_model's, its
tokenizer jpo.formats.gguf_tokenizer's. Container: the GGUF specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jpo.errors import FormatError
from jpo.formats.files import open_regular
from jpo.formats.stored import StoredTensor, aligned, tensor_bytes

_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16",
}  # fmt: skip
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
# metadata value type -> NumPy's little-endian dtype; 8 is a string, 9 an array
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


@dataclass
class GGUFFile:
    """Metadata (str, int, float, bool, list of str or NumPy array by key) and tensors under their GGUF names.

    entries: the metadata values as they stand in the file, type and bytes, for who writes them anew."""

    path: str
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    entries: dict[str, memoryview] = field(default_factory=dict, repr=False)


class _Cursor:
    """A position in the mapped file that refuses to pass its end."""

    def __init__(self, path: str, data: mmap.mmap):
        self.path, self.data, self.position, self.size = path, data, 0, len(data)

    def fail(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}")

    def take(self, count: int, what: str) -> int:
        """Start of the next `count` bytes; moves past them."""
        start = self.position
        if count > self.size - start:
            raise self.fail(f"{what}: {count} bytes at offset {start} pass the end of the file ({self.size} bytes)")
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        return struct.unpack_from("<I", self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return struct.unpack_from("<Q", self.data, self.take(8, what))[0]

    def text(self, what: str) -> str:
        length = self.u64(what)
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what}: not valid UTF-8 at offset {start} ({error.reason})") from None

    def texts(self, count: int, what: str) -> list[str]:
        """`count` strings; the inner loop of loading a vocabulary, so without a call per string."""
        if count > (self.size - self.position) // 8:
            raise self.fail(f"{what}: {count} strings do not fit into the rest of the file")
        data, position, size, unpack = self.data, self.position, self.size, struct.Struct("<Q").unpack_from
        result = []
        for index in range(count):
            if size - position < 8:
                raise self.fail(f"{what}[{index}]: the file ends within the string's length")
            end = position + 8 + unpack(data, position)[0]
            if end > size:
                raise self.fail(f"{what}[{index}]: {end - position - 8} bytes pass the end of the file ({size} bytes)")
            result.append(data[position + 8 : end])
            position = end
        self.position = position
        try:
            return [entry.decode("utf-8") for entry in result]
        except UnicodeDecodeError as error:
            raise self.fail(f"{what}: a string is not valid UTF-8 ({error.reason})") from None

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            raise self.fail(f"{what}: unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.data, dtype, 1, self.take(dtype.itemsize, what))[0].item()

    def array(self, what: str) -> list[str] | np.ndarray:
        kind, count = self.u32(what), self.u64(what)
        if kind == _STRING:
            return self.texts(count, what)
        if kind not in _SCALARS:
            raise self.fail(f"{what}: arrays of value type {kind} are not supported")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize, what)).copy()


def _map(path: str) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise FormatError(f"{path}: {os.fstat(file.fileno()).st_size} bytes are too few for a GGUF header (24)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def _header(cursor: _Cursor) -> tuple[int, int, int]:
    """(version, tensors, metadata entries)"""
    magic = cursor.data[cursor.take(4, "magic") : 4]
    if magic != b"GGUF":
        raise cursor.fail(f"not a GGUF file: begins with {magic!r}, expected b'GGUF'")
    version = cursor.u32("version")
    if version not in (2, 3):
        hint = " (written on a big-endian machine)" if version and not version & 0xFFFF else ""
        raise cursor.fail(f"GGUF version {version}{hint} is not supported; expected 2 or 3, little-endian")
    tensors, entries = cursor.u64("tensor count"), cursor.u64("metadata count")
    room = cursor.size - cursor.position  # the smallest entry takes 13 bytes, the smallest tensor 32
    if entries > room // 13 or tensors > room // 24:
        raise cursor.fail(f"{entries} metadata entries and {tensors} tensors cannot fit into {cursor.size} bytes")
    return version, tensors, entries


def _tensor_info(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    """(name, type, shape with the contiguous axis last, offset from the start of the data)"""
    name = cursor.text("tensor name")
    rank = cursor.u32(f"tensor {name}: rank")
    if not 1 <= rank <= 4:
        raise cursor.fail(f"tensor {name}: rank {rank} is not supported; expected 1 to 4")
    shape = struct.unpack_from(f"<{rank}Q", cursor.data, cursor.take(8 * rank, f"tensor {name}: shape"))[::-1]
    return name, cursor.u32(f"tensor {name}: type"), shape, cursor.u64(f"tensor {name}: offset")


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 20 or value & (value - 1):
        raise cursor.fail(f"general.alignment: expected a power of two up to 2^20, got {value!r}")
    return value


def _refuse_overlaps(cursor: _Cursor, places: dict[str, tuple[str, tuple[int, ...], int, int]]) -> None:
    """Two tensors on the same bytes: a small file would stand for any amount of memory."""
    before, reached = "", 0
    for name, (_, _, first, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first < reached:
            raise cursor.fail(f"tensor {name}: its bytes from offset {first} on overlap those of tensor {before}")
        before, reached = name, end


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Metadata and memory-mapped tensors of a GGUF file; FormatError names file and key or tensor."""
    path = os.fspath(path)
    data = _map(path)
    cursor = _Cursor(path, data)
    version, count, entries = _header(cursor)
    metadata: dict[str, Any] = {}
    stored: dict[str, memoryview] = {}
    for _ in range(entries):
        key = cursor.text("metadata key")
        if key in metadata:
            raise cursor.fail(f"metadata key {key} stands twice")
        before = cursor.position
        metadata[key] = cursor.value(cursor.u32(f"metadata key {key}: type"), f"metadata key {key}")
        stored[key] = memoryview(data)[before : cursor.position]
    infos = [_tensor_info(cursor) for _ in range(count)]
    alignment = _alignment(cursor, metadata)
    start = -(-cursor.position // alignment) * alignment
    whole = np.frombuffer(data, np.uint8)
    places: dict[str, tuple[str, tuple[int, ...], int, int]] = {}  # dtype, shape, first byte, behind the last
    for name, kind, shape, offset in infos:
        if name in places:
            raise cursor.fail(f"tensor {name} stands twice")
        if kind not in _TYPES:
            raise cursor.fail(
                f"tensor {name}: type {_OTHER_TYPES.get(kind, kind)} is not implemented; "
                f"convert the file to one of {', '.join(_TYPES.values())} (llama-quantize)"
            )
        if offset % alignment:
            raise cursor.fail(f"tensor {name}: offset {offset} is no multiple of the alignment {alignment}")
        size = tensor_bytes(path, name, _TYPES[kind], shape)
        if size > len(whole) - start - offset:
            raise cursor.fail(f"tensor {name}: {size} bytes at data offset {offset} pass the end of the file")
        places[name] = _TYPES[kind], shape, start + offset, start + offset + size
    _refuse_overlaps(cursor, places)
    tensors = {
        name: StoredTensor(name, dtype, shape, aligned(whole[first:end], dtype))
        for name, (dtype, shape, first, end) in places.items()
    }
    return GGUFFile(path, version, metadata, tensors, stored)
