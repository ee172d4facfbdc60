"""What is known of one question to a judge, checked: the row of every journal, be it SQLite or Parquet.

Knows values and the names of columns; never files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jpo.errors import FormatError

COLUMNS = (
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
    "protocol",
)
VERDICTS = ("A", "B", "tie")
SALVAGE = "; the journal is damaged: --salvage keeps what is sound of it and goes on"


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
    protocol: str = "tie"

    def values(self) -> tuple[object, ...]:
        """As the table's row."""
        return tuple(getattr(self, name) for name in COLUMNS)

    @classmethod
    def of_row(cls, row: Sequence[Any], where: str) -> Entry:
        """The entry of a row, checked; FormatError names `where` and the column that cannot be."""
        values = dict(zip(COLUMNS, row, strict=True))
        for name in ("swapped", "attempts", "tokens", "completion_tokens", "failed"):
            value = values[name]
            if not isinstance(value, int) or value < 0 or (name in ("swapped", "failed") and value > 1):
                raise FormatError(f"{where}: {name}: expected a whole number, got {value!r:.40}{SALVAGE}")
        for name in ("key", "judge", "protocol"):
            if not isinstance(values[name], str):
                raise FormatError(f"{where}: {name}: expected a text, got {values[name]!r:.40}{SALVAGE}")
        for name in ("reply", "problem"):
            if not isinstance(values[name], (str, type(None))):
                raise FormatError(f"{where}: {name}: expected a text or null, got {values[name]!r:.40}{SALVAGE}")
        if values["verdict"] not in (*VERDICTS, None):
            got = f"{values['verdict']!r:.40}"
            raise FormatError(f"{where}: verdict: expected A, B, tie or null, got {got}{SALVAGE}")
        return cls(**{**values, "swapped": bool(values["swapped"]), "failed": bool(values["failed"])})
