"""What people said: SQLite, write-ahead, synced at every commit. A verdict is on disk before the browser is told so.

A showing is one item before one annotator, with its sides as they stood; a verdict belongs to a showing, and the same
one sent twice is one. `changes` keeps every answer that was ever given, undone ones too. Knows keys and names; never
texts.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jpo.errors import FormatError, JpoError

VERDICTS = ("left", "right", "equal", "skip")
LIMITS = {"rationale": 4000, "tag": 40, "tags": 12}  # characters, characters, number: of an annotator's own words
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS annotators (name TEXT PRIMARY KEY, salt TEXT NOT NULL, passcode TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS showings (
    id INTEGER PRIMARY KEY, item TEXT NOT NULL, annotator TEXT NOT NULL, swapped INTEGER NOT NULL,
    again INTEGER NOT NULL, at REAL NOT NULL, UNIQUE (item, annotator, again)
);
CREATE TABLE IF NOT EXISTS verdicts (
    showing INTEGER PRIMARY KEY REFERENCES showings (id), verdict TEXT NOT NULL, rationale TEXT NOT NULL,
    tags TEXT NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS changes (
    showing INTEGER NOT NULL, verdict TEXT, rationale TEXT NOT NULL, tags TEXT NOT NULL, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS asked (item TEXT PRIMARY KEY, round INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Showing:
    """One item before one annotator. swapped: side 1 stood left; again: 0 the first time, 1 the repetition."""

    id: int
    item: str
    annotator: str
    swapped: bool
    again: int
    at: float  # seconds since the epoch


@dataclass(frozen=True)
class Answer:
    """The standing verdict on a showing, in the annotator's words; seconds of looking at it."""

    showing: Showing
    verdict: str
    rationale: str
    tags: tuple[str, ...]
    seconds: float
    at: float

    @property
    def feedback(self) -> int | None:
        """0, 1 or 2 (equal) in the item's own order of sides; None where it was skipped."""
        if self.verdict in ("equal", "skip"):
            return 2 if self.verdict == "equal" else None
        return int((self.verdict == "right") != self.showing.swapped)


@contextlib.contextmanager
def naming_faults(path: str) -> Iterator[None]:
    """Inside the block a fault of the store at `path` becomes a JpoError that names it, with the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        remedy = "what was acknowledged is in it; mend this and run the command again"
        raise JpoError(f"{path}: {error}; {remedy}") from None


class Store:
    """The project's memory, one process at a time. Safe to call from several threads."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._lock = threading.RLock()
        self._depth = 0  # blocks of `together` that are open
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise JpoError(f"{self.path}: another jpo annotate serves this project; stop it first") from None
            raise JpoError(f"{self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise FormatError(
                f"{self.path}: is no store of jpo annotate, or damaged ({error}); give another --output, or move it away"
            ) from None

    def close(self) -> None:
        """Folds the write-ahead log into the file and closes it."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What happens in this block is on disk when it ends (one sync for all of it), or has not happened where it
        raises. A block inside a block ends with the outer one; where the inner one raises, only its part is undone."""
        with self._lock:
            mark = f"block_{self._depth}"
            self._db.execute(f"SAVEPOINT {mark}" if self._depth else "BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                self._db.execute(f"RELEASE {mark}" if self._depth > 1 else "COMMIT")
            except BaseException:
                if self._depth == 1 and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                elif self._db.in_transaction:
                    self._db.execute(f"ROLLBACK TO {mark}")
                    self._db.execute(f"RELEASE {mark}")
                raise
            finally:
                self._depth -= 1

    def secret(self, name: str) -> str:
        """A random text of this project, made once: the key of cookies and the like."""
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, secrets.token_urlsafe(32)))
            return str(self._db.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()[0])

    # annotators

    def enter(self, name: str, passcode: str) -> bool:
        """Whether this is the annotator's passcode; a new name takes the passcode that it came with."""
        salt = secrets.token_hex(16)
        row = (name, salt, _hashed(salt, passcode), time.time())
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO annotators VALUES (?, ?, ?, ?)", row)
            salt, known = self._db.execute("SELECT salt, passcode FROM annotators WHERE name = ?", (name,)).fetchone()
        return hmac.compare_digest(known, row[2] if salt == row[1] else _hashed(salt, passcode))

    def annotators(self) -> list[str]:
        """Everybody who ever entered, in that order."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT name FROM annotators ORDER BY at, name")]

    # rounds

    def ask(self, items: Sequence[str]) -> None:
        """Notes that these items are asked from now on: one round."""
        with self.together():
            number = self._db.execute("SELECT coalesce(max(round), 0) + 1 FROM asked").fetchone()[0]
            self._db.executemany("INSERT OR IGNORE INTO asked VALUES (?, ?)", [(item, number) for item in items])

    def asked(self) -> dict[str, int]:
        """item -> the round that it was first asked in, in that order."""
        with self._lock:
            return dict(self._db.execute("SELECT item, round FROM asked ORDER BY round, rowid").fetchall())

    # showings and verdicts

    def showings(self, annotator: str | None = None) -> list[Showing]:
        """All, or one annotator's, in the order in which they were made."""
        where, values = ("WHERE annotator = ?", (annotator,)) if annotator is not None else ("", ())
        query = f"SELECT id, item, annotator, swapped, again, at FROM showings {where} ORDER BY id"
        with self._lock:
            return [_showing(row) for row in self._db.execute(query, values)]

    def show(self, item: str, annotator: str, swapped: bool, again: int) -> Showing:
        """Notes that the item now stands before the annotator."""
        with self._lock:
            row = (item, annotator, int(swapped), again, time.time())
            cursor = self._db.execute(
                "INSERT INTO showings (item, annotator, swapped, again, at) VALUES (?, ?, ?, ?, ?)", row
            )
            return Showing(int(cursor.lastrowid or 0), item, annotator, swapped, again, row[4])

    def answer(
        self, showing: int, annotator: str, verdict: str, rationale: str, tags: Sequence[str], seconds: float
    ) -> Answer | None:
        """Puts the verdict on disk, then returns it; None where this very showing was answered before (a repeated
        request: what stands is kept). JpoError where the showing is not this annotator's."""
        if verdict not in VERDICTS:
            raise JpoError(f"verdict: expected one of {', '.join(VERDICTS)}, got {verdict!r}")
        with self.together():
            query = "SELECT id, item, annotator, swapped, again, at FROM showings WHERE id = ?"
            found = self._db.execute(query, (showing,)).fetchone()
            if found is None or found[2] != annotator:
                raise JpoError(f"showing {showing} is not one of {annotator!r}")
            now, words = time.time(), json.dumps(list(tags), ensure_ascii=False)
            row = (showing, verdict, rationale, words, max(0.0, float(seconds)), now)
            new = self._db.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", row).rowcount == 1
            if new:
                change = (showing, verdict, rationale, words, now)
                self._db.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", change)
        return Answer(_showing(found), verdict, rationale, tuple(tags), row[4], now) if new else None

    def undo(self, showing: int) -> bool:
        """Takes the standing verdict on a showing back (changes keeps it); False where there is none."""
        with self.together():
            found = self._db.execute("DELETE FROM verdicts WHERE showing = ?", (showing,)).rowcount == 1
            if found:
                change = (showing, None, "", "[]", time.time())
                self._db.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", change)
            return found

    def answers(self, annotator: str | None = None) -> list[Answer]:
        """The standing verdicts, all or one annotator's, in the order of their showings."""
        where, values = ("WHERE annotator = ?", (annotator,)) if annotator is not None else ("", ())
        query = (
            "SELECT id, item, annotator, swapped, again, showings.at, verdict, rationale, tags, seconds, verdicts.at "
            f"FROM showings JOIN verdicts ON id = showing {where} ORDER BY id"
        )
        with self._lock:
            rows = self._db.execute(query, values).fetchall()
        return [Answer(_showing(row[:6]), row[6], row[7], tuple(json.loads(row[8])), row[9], row[10]) for row in rows]


def _showing(row: Sequence[object]) -> Showing:
    identity, item, annotator, swapped, again, at = row
    return Showing(int(identity), str(item), str(annotator), bool(swapped), int(again), float(at))  # type: ignore[call-overload, arg-type]


def _hashed(salt: str, passcode: str) -> str:
    return hashlib.scrypt(passcode.encode(), salt=bytes.fromhex(salt), n=1 << 12, r=8, p=1).hex()
