"""Verdict journals as one Parquet file: what many shards were told, sorted by key, a fraction of SQLite's size.

The file is written aside, synced and renamed before a journal is removed, so that a kill loses nothing and compacting
again ends what it had begun. Knows entries and files; never judges.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from jpo.disk import lock, naming_faults, write_atomic
from jpo.errors import JpoError
from jpo.feedback.compacted import FORMAT, SUFFIX, Compacted, pyarrow_for
from jpo.feedback.entries import COLUMNS, Entry
from jpo.feedback.journal import Journal, entries_of

_GROUP = 4096  # rows that lie together, and are read together to find one
_REMEDY = "free some space and compact again: nothing is lost"


def compact(output: str | os.PathLike[str], journals: Sequence[str], *, keep: bool = False) -> int:
    """Puts the entries of some journals (.sqlite, or .parquet of an earlier compaction) into `output`, together with
    those that it holds already; the number of entries. Memory does not grow with their number.

    Where several know a question a verdict stays, else the entry of the most attempts. The journals are removed once
    the file is on disk, unless `keep`. JpoError names a journal that is missing or in use."""
    path = os.fspath(output)
    if not path.endswith(SUFFIX):
        raise JpoError(f"{path}: verdicts are compacted into Parquet; give a name that ends in {SUFFIX}")
    sources = [
        name for name in dict.fromkeys(map(os.fspath, journals)) if os.path.abspath(name) != os.path.abspath(path)
    ]
    missing = [name for name in sources if not os.path.exists(name)]
    if missing:
        raise JpoError(f"{missing[0]}: no such journal; expected the .sqlite file of jpo feedback or evaluate")
    with contextlib.ExitStack() as held:
        with naming_faults(path, _REMEDY):
            folder, name = os.path.split(os.path.abspath(path))
            os.makedirs(folder, exist_ok=True)
            guard = held.enter_context(open(os.path.join(folder, f".{name}.lock"), "w"))
        lock(guard, f"{path}: another process compacts into it")
        parts = [held.enter_context(_held(source)) for source in sources]
        if os.path.exists(path):
            parts.append(held.enter_context(_held(path)))
        merged = heapq.merge(*parts, key=attrgetter("key"))
        chosen = (max(same, key=_weight) for _, same in groupby(merged, key=attrgetter("key")))
        counts: list[int] = []
        with naming_faults(path, _REMEDY):
            write_atomic(path, lambda part: counts.append(_write(part, chosen)))
        for name in () if keep else (f"{source}{end}" for source in sources for end in ("", "-wal", "-shm")):
            with contextlib.suppress(FileNotFoundError):
                os.remove(name)
    return counts[0]


@contextlib.contextmanager
def _held(name: str) -> Iterator[Iterator[Entry]]:
    """The entries of a journal by key; inside the block nobody else opens it. JpoError where somebody has it open."""
    if name.endswith(SUFFIX):
        with contextlib.closing(Compacted(name)) as found:
            yield found.entries()
        return
    Journal(name, create=False).close()  # checked, and brought to the columns of today
    connection = sqlite3.connect(name, isolation_level=None, timeout=1.0)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    with contextlib.closing(connection):
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()  # needs to be the only one
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise JpoError(f"{name}: is in use ({error}); compact it when the run that writes it has ended") from None
        yield entries_of(connection, name)


def _weight(entry: Entry) -> tuple[bool, int]:
    return entry.verdict is not None, entry.attempts


def _write(part: str, entries: Iterator[Entry]) -> int:
    """All entries, _GROUP rows together."""
    arrow = pyarrow_for(part)
    whole = ("attempts", "tokens", "completion_tokens")
    kinds = {name: arrow.int64() if name in whole else arrow.string() for name in COLUMNS}
    kinds |= {"swapped": arrow.bool_(), "failed": arrow.bool_()}
    schema = arrow.schema([arrow.field(name, kinds[name]) for name in COLUMNS], metadata={b"format": FORMAT})
    count, rows = 0, list[tuple[object, ...]]()
    options = {"compression": "zstd", "use_dictionary": ["judge", "verdict", "problem", "protocol"]}
    with arrow.parquet.ParquetWriter(part, schema, write_statistics=True, **options) as writer:

        def flush() -> None:
            columns = [list(column) for column in zip(*rows, strict=True)]
            arrays = [arrow.array(values, kinds[name]) for name, values in zip(COLUMNS, columns, strict=True)]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema), row_group_size=_GROUP)
            rows.clear()

        for entry in entries:
            rows.append(entry.values())
            count += 1
            if len(rows) == _GROUP:
                flush()
        if rows:
            flush()
    return count
