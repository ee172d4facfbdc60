"""The Parquet file that `jpo compact` made of journals, asked for what it holds: a verdict is found by the smallest and
largest key of its row groups, and few groups stand in memory. Only reads.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jpo.errors import FormatError, MissingExtra
from jpo.feedback.entries import COLUMNS, Entry

SUFFIX = ".parquet"
SQLITE = ".sqlite"  # a journal's name ends so
FORMAT = b"jpo verdicts 1"
_KEPT = 64  # row groups that stand in memory
_MAGIC = b"PAR1"


def pyarrow_for(what: str) -> Any:
    """pyarrow with its parts for Parquet; MissingExtra, naming what needs it, where it is not installed."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.compute  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra(
            f"{what}: verdicts in Parquet need pyarrow; install it with: pip install 'jpo[parquet]'"
        ) from None
    return pyarrow


def compacted_name(journal: str | os.PathLike[str]) -> str:
    """X.parquet of X.sqlite."""
    return os.fspath(journal).removesuffix(SQLITE) + SUFFIX


def compacted_of(journal: str) -> Compacted | None:
    """What was compacted of a journal before: X.parquet beside X.sqlite; None where there is none of ours."""
    name = compacted_name(journal)
    if not os.path.isfile(name):
        return None  # and pyarrow is not asked for
    with open(name, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
    try:
        return Compacted(name)
    except NoVerdicts:
        return None


class NoVerdicts(FormatError):
    """A sound Parquet file of something else."""


class Compacted:
    """Entries of a Parquet file that `compact` wrote, by key. FormatError where it is none, or damaged."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._arrow = pyarrow_for(self.path)
        try:
            self._file = self._arrow.parquet.ParquetFile(self.path, memory_map=True)
        except (OSError, self._arrow.ArrowException) as error:
            raise FormatError(f"{self.path}: no readable file of verdicts: {_first(error)}") from None
        told = (self._file.schema_arrow.metadata or {}).get(b"format")
        if told != FORMAT or tuple(self._file.schema_arrow.names) != COLUMNS:
            raise NoVerdicts(f"{self.path}: holds no verdicts that jpo compact wrote")
        groups = [self._file.metadata.row_group(i).column(0).statistics for i in range(self._file.num_row_groups)]
        self._last = [found.max for found in groups]
        self._rows = lru_cache(_KEPT)(self._group)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def get(self, key: str) -> Entry | None:
        """The entry, or None."""
        place = bisect.bisect_left(self._last, key)
        if place == len(self._last):
            return None
        rows = self._rows(place)
        found = self._arrow.compute.index(rows.column("key"), key).as_py()
        return None if found < 0 else next(self._entries(rows.slice(found, 1)))

    def entries(self) -> Iterator[Entry]:
        """All, by key."""
        for place in range(self._file.num_row_groups):
            yield from self._entries(self._group(place))

    def _entries(self, rows: Any) -> Iterator[Entry]:
        """Rows of the file, checked."""
        columns = rows.to_pydict()
        for row in zip(*(columns[name] for name in COLUMNS), strict=True):
            yield Entry.of_row(row, f"{self.path}: key {str(row[0])[:16]}")

    def _group(self, place: int) -> Any:
        try:
            return self._file.read_row_group(place)
        except (OSError, self._arrow.ArrowException) as error:
            raise FormatError(f"{self.path}: row group {place} cannot be read: {_first(error)}") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
