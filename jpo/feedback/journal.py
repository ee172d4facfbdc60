"""The journal of attempts: SQLite, write-ahead, synced at every commit, keyed by content.

A received verdict is on disk before its slot asks again; a killed run loses nothing and asks nothing twice. Verdicts that
arrive while one commit is being synced share the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from jpo.errors import FormatError, JpoError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, swapped INTEGER NOT NULL, attempts INTEGER NOT NULL,
    verdict TEXT, reply TEXT, problem TEXT, tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID
"""
_LATER = ("completion_tokens", "failed")  # columns that the first journals lack
_COLUMNS = (
    "key",
    "judge",
    "swapped",
    "attempts",
    "verdict",
    "reply",
    "problem",
    "tokens",
    "completion_tokens",
    "failed",
)
_GATHER = 0.0005  # seconds that a commit waits for verdicts which arrive together; a sync takes longer


def content_key(judge: str, version: str, swapped: bool, prompt: str) -> str:
    """The hash of (judge, prompt version, order, texts)."""
    parts = (judge, version, "swapped" if swapped else "as given", prompt)
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """The state of one question after its last attempt; tokens are those of all its attempts."""

    key: str
    judge: str
    swapped: bool
    attempts: int
    verdict: str | None = None
    reply: str | None = None  # raw, its beginning
    problem: str | None = None
    tokens: int = 0
    completion_tokens: int = 0
    failed: bool = False  # given up: only --retry-failed asks again

    def values(self) -> tuple[object, ...]:
        """As the table's row."""
        return tuple(getattr(self, name) for name in _COLUMNS)


class Journal:
    """Entries by key; one writer at a time, and a reader beside it. create=False: a missing file reads as empty."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True):
        self.path = os.fspath(path)
        where = self.path if create or os.path.exists(self.path) else ":memory:"
        try:
            self._db = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
            known = {row[1] for row in self._db.execute("PRAGMA table_info(verdicts)")}
            for name in _LATER:
                if name not in known:
                    self._db.execute(f"ALTER TABLE verdicts ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
            own = where != ":memory:"  # one thread at a time reads, not always the one that opened
            self._reader = sqlite3.connect(where, isolation_level=None, check_same_thread=False) if own else self._db
        except sqlite3.DatabaseError as error:
            raise FormatError(f"{self.path}: not a usable verdict journal ({error}); give another --journal") from None

    def get(self, key: str) -> Entry | None:
        """The entry, or None where nothing was asked yet."""
        row = self._reader.execute(f"SELECT {', '.join(_COLUMNS)} FROM verdicts WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        values = dict(zip(_COLUMNS, row, strict=True))
        return Entry(**{**values, "swapped": bool(values["swapped"]), "failed": bool(values["failed"])})

    def put(self, entries: Sequence[Entry]) -> None:
        """Commit the entries together; on disk when this returns."""
        marks = ", ".join("?" * len(_COLUMNS))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                f"INSERT OR REPLACE INTO verdicts ({', '.join(_COLUMNS)}) VALUES ({marks})",
                [entry.values() for entry in entries],
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise JpoError(f"{self.path}: the journal cannot be written: {error}") from None

    def close(self) -> None:
        """Close the database."""
        self._reader.close()
        self._db.close()


class GroupCommit:
    """put(entry) returns once the entry is on disk; entries that arrive together share one sync, in a thread beside the
    event loop."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, entry: Entry) -> None:
        """Commit one entry."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._task is None:
            self._task = asyncio.create_task(self._write())
        await future

    async def _write(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(_GATHER)
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self.journal.put, [entry for entry, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for _, future in batch:
                        if not future.done():
                            future.set_result(None)
        finally:
            self._task = None

    def flush(self) -> None:
        """Commit what still waits, once the event loop has ended: an interrupted run keeps what it has received."""
        batch, self._waiting = self._waiting, []
        if batch:
            self.journal.put([entry for entry, _ in batch])
