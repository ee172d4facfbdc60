"""The journal of attempts: SQLite, write-ahead, synced at every commit, keyed by content. A received verdict is on disk
before its slot asks again; a killed run loses nothing and asks nothing twice."""

from __future__ import annotations

import hashlib
import os
import sqlite3

from jpo.errors import FormatError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, swapped INTEGER NOT NULL, attempts INTEGER NOT NULL,
    verdict TEXT, reply TEXT, problem TEXT, tokens INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID
"""


def content_key(judge: str, version: str, swapped: bool, prompt: str) -> str:
    """The hash of (judge, prompt version, order, texts)."""
    parts = (judge, version, "swapped" if swapped else "as given", prompt)
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class Journal:
    """Verdicts by key; one writer, one connection."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise FormatError(f"{self.path}: not a usable verdict journal ({error}); give another --journal") from None

    def get(self, key: str) -> tuple[str | None, int, str | None, str | None] | None:
        """(verdict, attempts, reply, problem), or None where nothing was asked yet."""
        row = self._db.execute(
            "SELECT verdict, attempts, reply, problem FROM verdicts WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else (row[0], int(row[1]), row[2], row[3])

    def put(
        self,
        key: str,
        judge: str,
        swapped: bool,
        attempts: int,
        verdict: str | None,
        reply: str | None,
        problem: str | None,
        tokens: int,
    ) -> None:
        """Commit the state of one question; on disk when this returns."""
        self._db.execute(
            "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, judge, int(swapped), attempts, verdict, reply, problem, tokens),
        )

    def close(self) -> None:
        """Close the database."""
        self._db.close()
