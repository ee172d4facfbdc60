"""The journal of attempts: SQLite, write-ahead, synced at every commit, keyed by content.

A received verdict is on disk before its slot asks again; a killed run loses nothing and asks nothing twice. Verdicts
that arrive while one commit is being synced share the next one, and none of them depends on another: an entry that
SQLite cannot hold is left out alone. What is read is checked; jpo.feedback.salvage gets the sound rows out of a damaged
file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jpo.errors import FormatError, JpoError
from jpo.feedback.compacted import compacted_of
from jpo.feedback.entries import COLUMNS, SALVAGE, Entry

_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, swapped INTEGER NOT NULL, attempts INTEGER NOT NULL,
    verdict TEXT, reply TEXT, problem TEXT, tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    protocol TEXT NOT NULL DEFAULT 'tie'
) WITHOUT ROWID
"""
# what a server refused once (jpo.feedback.openai_judge), as JSON by the judge's name
_SERVERS = "CREATE TABLE IF NOT EXISTS servers (judge TEXT PRIMARY KEY, refused TEXT NOT NULL)"
_LATER = {  # columns that the first journals lack
    "completion_tokens": "INTEGER NOT NULL DEFAULT 0",
    "failed": "INTEGER NOT NULL DEFAULT 0",
    "protocol": "TEXT NOT NULL DEFAULT 'tie'",
}
DAMAGE = (sqlite3.Error, UnicodeError)  # what SQLite raises over a damaged file: its message may hold the file's bytes
MOST = (1 << 63) - 1  # what SQLite holds; a count above it is not believed
_CHECKED_BYTES = 64 << 20  # journals up to here are checked for damage as they are opened
_BATCH = 4096  # entries of a commit while journals are merged
_GATHER = 0.0005  # seconds that a commit waits for verdicts which arrive together; a sync takes longer


def content_key(judge: str, version: str, swapped: bool, prompt: str) -> str:
    """The hash of (judge, prompt version, order, texts)."""
    parts = (judge, version, "swapped" if swapped else "as given", prompt)
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class Journal:
    """Entries by key; one writer at a time, and a reader beside it. create=False: a missing file reads as empty.

    beside: a journal, if it is there, that is asked for what this one lacks (a shard's whole). So is the Parquet file
    that an earlier `jpo compact` made of this journal (jpo.feedback.compact)."""

    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = True, beside: str | os.PathLike[str] | None = None
    ):
        self.path = os.fspath(path)
        self.beside = Journal(beside, create=False) if beside is not None else None
        self.compacted = compacted_of(self.path)
        where = self.path if create or os.path.exists(self.path) else ":memory:"
        self._open: list[sqlite3.Connection] = []
        try:
            self._db = self._connected(where)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            if where != ":memory:" and os.path.getsize(where) <= _CHECKED_BYTES:
                found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise sqlite3.DatabaseError(" ".join(str(found).split())[:120])
            self._db.execute(_SCHEMA)
            self._db.execute(_SERVERS)
            known = {row[1] for row in self._db.execute("PRAGMA table_info(verdicts)")}
            for name, kind in _LATER.items():
                if name not in known:
                    self._db.execute(f"ALTER TABLE verdicts ADD COLUMN {name} {kind}")
            # one thread at a time reads, not always the one that opened
            self._reader = self._connected(where) if where != ":memory:" else self._db
            self._reader.execute(f"SELECT {', '.join(COLUMNS)} FROM verdicts LIMIT 0")
        except DAMAGE as error:
            self.close()
            raise FormatError(
                f"{self.path}: not a usable verdict journal ({error}); give another --journal, or --salvage to keep what is "
                "sound of it"
            ) from None

    def _connected(self, where: str) -> sqlite3.Connection:
        connection = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        self._open.append(connection)
        return connection

    def get(self, key: str) -> Entry | None:
        """The entry, or None where nothing was asked yet. FormatError where the row or its page is damaged."""
        try:
            row = self._reader.execute(f"SELECT {', '.join(COLUMNS)} FROM verdicts WHERE key = ?", (key,)).fetchone()
        except DAMAGE as error:
            raise FormatError(f"{self.path}: {error}{SALVAGE}") from None
        if row is None:
            found = (other.get(key) for other in (self.compacted, self.beside) if other is not None)
            return next((entry for entry in found if entry is not None), None)
        return Entry.of_row(row, f"{self.path}: key {key[:16]}")

    def entries(self) -> Iterator[Entry]:
        """All of this file's own, by key."""
        return entries_of(self._reader, self.path)

    def put(self, entries: Sequence[Entry]) -> None:
        """Commit the entries together; on disk when this returns. JpoError names the first that could not be held; the
        others are on disk all the same."""
        try:
            self._write(entries)
        except (OverflowError, UnicodeError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
            if len(entries) == 1:
                what = f"{type(error).__name__} at key {entries[0].key[:16]}"
                raise JpoError(f"{self.path}: an entry cannot be held: {what}") from None
            problems = []
            for entry in entries:
                try:
                    self.put([entry])
                except JpoError as problem:
                    problems.append(problem)
            if problems:
                raise problems[0] from None
        except sqlite3.Error as error:
            hint = SALVAGE if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error) else ""
            raise JpoError(f"{self.path}: the journal cannot be written: {error}{hint}") from None

    def _write(self, entries: Sequence[Entry]) -> None:
        marks = ", ".join("?" * len(COLUMNS))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                f"INSERT OR REPLACE INTO verdicts ({', '.join(COLUMNS)}) VALUES ({marks})",
                [entry.values() for entry in entries],
            )
            self._db.execute("COMMIT")
        except BaseException:  # whatever it was: an open transaction would cost every later verdict
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            raise

    def refused(self, judge: str) -> dict[str, Any]:
        """What the judge's server refused in earlier runs; {} where that cannot be read: it is then met once more."""
        try:
            row = self._reader.execute("SELECT refused FROM servers WHERE judge = ?", (judge,)).fetchone()
            found = json.loads(row[0]) if row else {}
        except (sqlite3.Error, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def remember(self, judge: str, refused: Mapping[str, Any]) -> None:
        """Keep what the judge's server refuses; a journal that cannot be written says so at the next verdict."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("INSERT OR REPLACE INTO servers VALUES (?, ?)", (judge, json.dumps(dict(refused))))

    def checkpoint(self) -> None:
        """Bring everything into the one file."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the database."""
        for other in (self.beside, self.compacted):
            if other is not None:
                other.close()
        for connection in self._open:
            connection.close()


def entries_of(connection: sqlite3.Connection, where: str) -> Iterator[Entry]:
    """The entries of an open database, by key. FormatError where a row or its page is damaged."""
    try:
        for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM verdicts ORDER BY key"):
            yield Entry.of_row(row, f"{where}: key {str(row[0])[:16]}")
    except DAMAGE as error:
        raise FormatError(f"{where}: {error}{SALVAGE}") from None


def merge(path: str, sources: Sequence[str]) -> None:
    """Adds what the journals of shards hold to the journal at `path`; where two know a question, a verdict stays."""
    whole = Journal(path)
    try:
        for source in sources:
            part = Journal(source, create=False)
            try:
                batch: list[Entry] = []
                for entry in part.entries():
                    known = whole.get(entry.key)
                    if known is None or (entry.verdict and not known.verdict):
                        batch.append(entry)
                    if len(batch) == _BATCH:
                        whole.put(batch)
                        batch = []
                whole.put(batch)
            finally:
                part.close()
        whole.checkpoint()
    finally:
        whole.close()


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
                error: Exception | None = None
                try:
                    await asyncio.to_thread(self.journal.put, [entry for entry, _ in batch])
                except Exception as caught:
                    error = caught
                for _, future in batch:
                    if not future.done():
                        future.set_result(None) if error is None else future.set_exception(error)
        finally:
            self._task = None

    def flush(self) -> None:
        """Commit what still waits, once the event loop has ended: an interrupted run keeps what it has received."""
        batch, self._waiting = self._waiting, []
        if batch:
            self.journal.put([entry for entry, _ in batch])
