"""Gets the sound rows out of a damaged verdict journal: what is known is never asked again.

SQLite stops at the first bad page, and a bad inner page hides every page under it. So the file is read page by page
(SQLite's file format, sections 1.6 and 2.1): each B-tree page of the kind that holds the journal's rows is decoded by
itself, in the database and in its write-ahead log. A row counts if its key is a content key and its verdict is one;
what else is wrong in it is mended. Knows bytes and rows; never judges.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jpo.disk import settle, write_atomic
from jpo.errors import FormatError
from jpo.feedback.entries import COLUMNS, VERDICTS, Entry
from jpo.feedback.journal import DAMAGE, MOST, Journal
from jpo.feedback.replies import parse_reply

_KEY = re.compile(r"[0-9a-f]{64}")
_INNER, _LEAF = 0x02, 0x0A  # pages of a B-tree whose cells are whole rows
_PAGE_BYTES = 4096  # where the file's own word for it is damaged
_WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_DEFAULTS = {"attempts": 1, "tokens": 0, "completion_tokens": 0, "failed": 0, "swapped": 0, "protocol": "tie"}
_BATCH = 1000  # rows of one commit


def salvage(path: str | os.PathLike[str]) -> str:
    """Replace a damaged journal by one of its sound rows; what was done, as a line to print.

    The damaged file is kept as PATH.damaged. A sound journal, and a missing one, stay as they are."""
    name = os.fspath(path)
    if not os.path.exists(name) and not os.path.exists(f"{name}.damaged"):
        return f"{name}: no journal yet; nothing to salvage"
    # read before SQLite opens it, which may clear away a log that it does not trust
    parts = {part: _bytes(part) for part in (f"{name}.damaged", f"{name}.damaged-wal", name, f"{name}-wal")}
    if parts[name] and _sound(name):
        return f"{name}: nothing is damaged"
    rows: dict[str, Entry] = {}
    for data in parts.values():
        for row in _rows(data):
            entry = _mended(row)
            if entry is not None and _better(entry, rows.get(entry.key)):
                rows[entry.key] = entry
    _replace(name, list(rows.values()), {end: parts[name + end] for end in ("", "-wal")})
    known = sum(entry.verdict is not None for entry in rows.values())
    return f"{name}: salvaged {len(rows)} questions, {known} with a verdict; the damaged file is {name}.damaged"


def _sound(path: str) -> bool:
    """Whether SQLite finds nothing wrong and every row can be."""
    try:
        book = Journal(path)
    except FormatError:
        return False
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            if db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                return False
            for row in db.execute(f"SELECT {', '.join(COLUMNS)} FROM verdicts"):
                Entry.of_row(row, path)
    except (*DAMAGE, FormatError):
        return False
    finally:
        book.close()
    return True


def _better(entry: Entry, known: Entry | None) -> bool:
    return known is None or (entry.verdict is not None, entry.attempts) >= (known.verdict is not None, known.attempts)


def _bytes(path: str) -> bytes:
    """A file's bytes; none of a missing one."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _replace(path: str, entries: Sequence[Entry], damaged: Mapping[str, bytes]) -> None:
    """A new journal at `path`; `damaged`: the old file's and its log's bytes, kept beside it. Every step leaves the
    rows in `path` or in `path`.damaged, so that a kill in between loses none."""
    fresh = f"{path}.salvaged"
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(fresh + end)
    book = Journal(fresh)
    for first in range(0, len(entries), _BATCH):
        book.put(entries[first : first + _BATCH])
    book.checkpoint()
    book.close()
    for end, data in damaged.items():
        if data:
            _keep(f"{path}.damaged{end}", data)
    for end in ("-wal", "-shm"):  # they belong to the old file
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + end)
    settle(fresh, path)
    for end in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(fresh + end)


def _keep(path: str, data: bytes) -> None:
    """What was damaged, beside what was made of it."""

    def write(part: str) -> None:
        Path(part).write_bytes(data)

    write_atomic(path, write)


def _mended(row: Sequence[Any]) -> Entry | None:
    """The entry of a decoded row; None where its key or its verdict cannot be."""
    values = dict(zip(COLUMNS, [*row, *[None] * (len(COLUMNS) - len(row))], strict=True))
    if not isinstance(values["key"], str) or not _KEY.fullmatch(values["key"]):
        return None
    for name in ("judge", "reply", "problem"):
        if not isinstance(values[name], str):
            values[name] = "" if name == "judge" else None
    for name, default in _DEFAULTS.items():
        value = values[name]
        if not isinstance(value, type(default)) or (isinstance(value, int) and not 0 <= value <= MOST):
            values[name] = default
    if values["verdict"] not in (*VERDICTS, None):
        values["verdict"] = parse_reply(values["reply"] or "")
        if values["verdict"] is None:
            return None
    return Entry(**{**values, "swapped": bool(values["swapped"]), "failed": bool(values["failed"])})


# --- SQLite's pages -----------------------------------------------------------------------------------------------


def _rows(data: bytes) -> Iterator[list[Any]]:
    """Every row that can be decoded of a database file or a write-ahead log."""
    if data[:4] in _WAL_MAGIC:
        size = int.from_bytes(data[8:12], "big")
        starts = range(32 + 24, len(data), size + 24) if 512 <= size <= 65536 else range(0)
        pages = [data[start : start + size] for start in starts]
        whole = b""  # where overflow pages stand is another matter in a log
    else:
        stated = int.from_bytes(data[16:18], "big")
        size = 65536 if stated == 1 else stated
        if size < 512 or size & (size - 1):
            size = _PAGE_BYTES
        pages = [data[start : start + size] for start in range(0, len(data), size)]
        whole = data
    for page in pages:
        if len(page) == size and page[0] in (_INNER, _LEAF):
            yield from _cells(page, whole, size)


def _cells(page: bytes, whole: bytes, size: int) -> Iterator[list[Any]]:
    inner = page[0] == _INNER
    count, start = int.from_bytes(page[3:5], "big"), 12 if inner else 8
    for number in range(min(count, (size - start) // 2)):
        at = int.from_bytes(page[start + 2 * number : start + 2 * number + 2], "big") + (4 if inner else 0)
        try:
            yield _record(_payload(page, at, whole, size))
        except (IndexError, ValueError):
            continue


def _payload(page: bytes, at: int, whole: bytes, size: int) -> bytes:
    """A cell's bytes, those on overflow pages too."""
    length, at = _varint(page, at)
    most, least = (size - 12) * 64 // 255 - 23, (size - 12) * 32 // 255 - 23
    if length <= most:
        return _slice(page, at, length)
    local = least + (length - least) % (size - 4)
    local = local if local <= most else least
    if length > len(whole):
        raise ValueError
    pieces, left = [_slice(page, at, local)], length - local
    following = int.from_bytes(_slice(page, at + local, 4), "big")
    while left > 0:
        start = (following - 1) * size
        if following < 1:
            raise ValueError
        piece = min(left, size - 4)
        pieces.append(_slice(whole, start + 4, piece))
        following, left = int.from_bytes(_slice(whole, start, 4), "big"), left - piece
    return b"".join(pieces)


def _slice(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise ValueError
    return data[at : at + length]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends): seven bits a byte, the highest first, eight in a ninth byte."""
    value = 0
    for number in range(9):
        byte = data[at + number]
        if number == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + number + 1
    raise ValueError


def _record(payload: bytes) -> list[Any]:
    """The columns of a record, as many as it has."""
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if not 2 < len(kinds) <= len(COLUMNS):
        raise ValueError
    values: list[Any] = []
    for kind in kinds:
        length = _INTEGER_BYTES.get(kind, 8 if kind == 7 else (kind - 12) // 2 if kind > 11 else 0)
        piece = _slice(payload, at, length)
        at += length
        values.append(_value(kind, piece))
    return values


def _value(kind: int, piece: bytes) -> Any:
    if kind in _INTEGER_BYTES:
        return int.from_bytes(piece, "big", signed=True)
    if kind in (8, 9):
        return kind - 8
    return piece.decode("utf-8") if kind > 12 and kind % 2 else None
