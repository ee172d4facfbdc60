"""Encoded records on disk, read by index through a memory map: a sequence of EncodedPair or Encoded, however long, that
takes no memory.

tokens.npy holds the token ids of all records, int32, one after the other; records.npy a row for each: where its tokens
begin, its place among the records read, the lengths of its prompts and responses, marks. Both are plain NumPy files.
Knows tokens and files; never texts, templates or where the records came from (jpo.data.cache).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np

from jpo.data.encoding import Encoded, EncodedPair
from jpo.errors import FormatError

Kind = Literal["pairs", "examples"]
TOKENS, RECORDS = "tokens.npy", "records.npy"
ROW = np.dtype(
    [("start", "<i8"), ("index", "<i8"), ("lengths", "<i4", 4), ("marks", "<u2")]
)  # lengths: chosen prompt and response, rejected prompt and response; 0 where there is none
_ROW = struct.Struct("<qq4iH")
_CHOSEN, _REJECTED, _WEAK, _TIE, _ONE_PROMPT = (1 << bit for bit in range(5))  # _ONE_PROMPT: it stands once
_SIDE = (5, 8)  # first bit of the marks of the chosen and of the rejected sequence: cut_prompt, cut_response, crossed
_HEADER = 256  # bytes of a .npy header, whatever its shape
_WRITTEN = 1 << 20  # bytes that are gathered before they are written
_TOUCHED = 4  # records read before the maps' pages are given back: each read may have brought a megabyte of the file


class Writer:
    """Writes the two files into `folder`, record by record; `close` ends them. judged_last: examples that were judged
    alone stand behind the pairs, as they do in memory."""

    def __init__(self, folder: str, judged_last: bool = True):
        self.folder, self._judged_last = folder, judged_last
        self.count = self.tokens = 0
        self.lengths: Counter[int] = Counter()  # tokens of a record -> how many have so many
        self._sha = hashlib.sha256()
        self._files = {name: open(os.path.join(folder, name), "wb") for name in (TOKENS, RECORDS, "judged")}
        self._held = {name: bytearray(0 if name == "judged" else _HEADER) for name in self._files}
        self._judged = self._moved = False  # whether there are judged ones, and pairs behind them

    def add(self, record: EncodedPair | Encoded) -> None:
        """Append one record."""
        sides = (record, None) if isinstance(record, Encoded) else (record.chosen, record.rejected)
        one_prompt = sides[0] is not None and sides[1] is not None and sides[0].prompt == sides[1].prompt
        marks, lengths, first = _ONE_PROMPT * one_prompt, [0, 0, 0, 0], self.tokens
        for place, side in enumerate(sides):
            if side is None:
                continue
            marks |= (_CHOSEN, _REJECTED)[place]
            marks |= (side.cut_prompt | side.cut_response << 1 | side.crossed << 2) << _SIDE[place]
            lengths[2 * place : 2 * place + 2] = len(side.prompt), len(side.response)
            for ids in (side.response,) if place and one_prompt else (side.prompt, side.response):
                self._write(TOKENS, ids.tobytes())
                self.tokens += len(ids)
        index = self.count
        if isinstance(record, EncodedPair):
            marks |= _WEAK * record.weak | _TIE * record.tie
            index = record.index
        row = _ROW.pack(first, index, *lengths, marks)
        judged = self._judged_last and isinstance(record, EncodedPair) and None in sides
        self._moved |= self._judged and not judged
        self._judged |= judged
        self._write("judged" if judged else RECORDS, row)
        self.count += 1
        self.lengths[sum(lengths)] += 1
        digest_record(self._sha, record)

    def _write(self, name: str, data: bytes) -> None:
        held = self._held[name]
        held += data
        if len(held) >= _WRITTEN:
            self._files[name].write(held)
            held.clear()

    def close(self) -> str:
        """Ends the files, on disk when this returns; the digest of the records (data_digest)."""
        for name, held in self._held.items():
            self._files[name].write(held)
        self._files["judged"].close()
        with open(self._files["judged"].name, "rb") as beside:
            shutil.copyfileobj(beside, self._files[RECORDS], _WRITTEN)
        os.unlink(self._files["judged"].name)
        for name, shape, dtype in ((TOKENS, self.tokens, np.dtype("<i4")), (RECORDS, self.count, ROW)):
            file = self._files[name]
            file.seek(0)
            file.write(_header(shape, dtype))
            file.flush()
            os.fsync(file.fileno())
        self.abandon()
        return data_digest(Store(self.folder, "pairs")) if self._moved else self._sha.hexdigest()

    def abandon(self) -> None:
        """Closes what is open."""
        for file in self._files.values():
            file.close()


def _header(count: int, dtype: np.dtype[Any]) -> bytes:
    """A .npy header of _HEADER bytes (format 1.0) of a vector."""
    text = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)})
    start = np.lib.format.magic(1, 0) + struct.pack("<H", _HEADER - 10)
    padded = text.encode() + b" " * (_HEADER - len(start) - len(text) - 1) + b"\n"
    assert len(start) + len(padded) == _HEADER
    return start + padded


class Store(Sequence[Any]):
    """The records of a folder that a Writer has filled. FormatError where the files cannot be its."""

    def __init__(self, folder: str, kind: Kind):
        self.folder, self.kind = folder, kind
        self._tokens, found = _mapped(os.path.join(folder, TOKENS), np.dtype("<i4"))
        self._rows, self._count = _mapped(os.path.join(folder, RECORDS), ROW)
        self.tokens = found  # ids on disk; equal prompts of a pair stand once
        self._read = 0

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self._count))]
        place = place + self._count if place < 0 else place
        if not 0 <= place < self._count:
            raise IndexError(f"record {place} of {self._count}")
        self._give_back()
        start, index, *lengths, marks = _ROW.unpack_from(self._rows, _HEADER + ROW.itemsize * place)
        at = start
        sides: list[Any] = []
        for side in (0, 1):
            if not marks & (_CHOSEN, _REJECTED)[side]:
                sides.append(None)
                continue
            if side and marks & _ONE_PROMPT:
                prompt = sides[0].prompt
            else:
                prompt, at = self._ids(at, lengths[2 * side])
            response, at = self._ids(at, lengths[2 * side + 1])
            cut = marks >> _SIDE[side]
            sides.append(Encoded(prompt, response, bool(cut & 1), bool(cut & 2), bool(cut & 4)))
        if self.kind == "examples":
            return sides[0]
        return EncodedPair(sides[0], sides[1], bool(marks & _WEAK), index, bool(marks & _TIE))

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(self._count))

    def _ids(self, at: int, count: int) -> tuple[array[int], int]:
        ids = array("i")
        ids.frombytes(self._tokens[_HEADER + 4 * at : _HEADER + 4 * (at + count)])
        return ids, at + count

    def _give_back(self) -> None:
        """Pages that were read count as this process's memory until they are given back; the system keeps them."""
        self._read += 1
        if self._read >= _TOUCHED and hasattr(mmap, "MADV_DONTNEED"):
            self._read = 0
            for mapped in (self._tokens, self._rows):
                mapped.madvise(mmap.MADV_DONTNEED)


def _mapped(path: str, dtype: np.dtype[Any]) -> tuple[mmap.mmap, int]:
    """A .npy vector's bytes, mapped, and its length."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            count, rest = divmod(size - _HEADER, dtype.itemsize)
            if count < 1 or rest or file.read(_HEADER) != _header(count, dtype):
                raise FormatError(f"{path}: is cut off, or no file of encoded records")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped, count


def digest_record(sha: Any, record: EncodedPair | Encoded) -> None:
    """Adds what tells a record from another to a SHA-256."""
    for ids in record.identity():
        sha.update(ids.tobytes())
        sha.update(b"|")


def data_digest(records: Iterable[EncodedPair | Encoded]) -> str:
    """SHA-256 of records in tokens: equal data give equal digests, in memory and on disk."""
    known = getattr(records, "digest", None)
    if known is not None:
        return str(known)
    sha = hashlib.sha256()
    for record in records:
        digest_record(sha, record)
    return sha.hexdigest()
