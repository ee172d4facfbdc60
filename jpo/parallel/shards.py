"""Shards of a stage: part i of n of its records gives one file, written aside and renamed; the files in order, one
after the other, are what a single process writes.

Knows ranges and files; never what the records are.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jpo.data.readers import Record, iter_records
from jpo.disk import write_atomic
from jpo.errors import JpoError

_TEXT = re.compile(r"([0-9]+)/([0-9]+)")
_NAME = "-{:05d}-of-{:05d}"
_MOST = 99999


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Out of "i/n"; JpoError where i is not one of 0 to n - 1."""
        found = _TEXT.fullmatch(text.strip())
        if not found or not int(found[1]) < int(found[2]) <= _MOST:
            raise JpoError(f"--shard: expected i/n with i from 0 to n - 1, such as 0/4 to 3/4, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def range(self, total: int) -> tuple[int, int]:
        """(first, end) of its part of `total` things; the parts are even and follow each other."""
        return self.index * total // self.count, (self.index + 1) * total // self.count

    def path(self, output: str | os.PathLike[str]) -> str:
        """Its file: out.jsonl is out-00000-of-00004.jsonl."""
        stem, suffix = os.path.splitext(os.fspath(output))
        return stem + _NAME.format(self.index, self.count) + suffix

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class Part:
    """The records of a shard of a source, in order, one by one; counted by reading the source once."""

    def __init__(self, source: Any, shard: Shard):
        self.source = source
        self.first, self.end = shard.range(sum(1 for _ in iter_records(source)))

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[Record]:
        return itertools.islice(iter_records(self.source), self.first, self.end)


def counts(output: str) -> list[int]:
    """Into how many shards runs have cut `output`, by the files that lie there."""
    stem, suffix = os.path.splitext(os.path.basename(output))
    named = re.compile(re.escape(stem) + r"-[0-9]{5}-of-([0-9]{5})" + re.escape(suffix))
    folder = os.path.dirname(os.path.abspath(output))
    found = [named.fullmatch(name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
    return sorted({int(match[1]) for match in found if match})


def _put_together(paths: list[str], output: str) -> None:
    """Lines one after the other; log-likelihoods of a reference model in one file of theirs."""
    from jpo.train.reference import holds_logps, join_logps

    if all(map(holds_logps, paths)):
        join_logps(paths, output)
        return

    def write(temporary: str) -> None:
        with open(temporary, "wb") as whole:
            for path in paths:
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, whole)

    write_atomic(output, write)


def join(output: str, count: int | None = None, keep: bool = False, journal: str | None = None) -> int:
    """Writes the shards of `output`, one after the other, into it: aside, synced, renamed; what it held goes, but for
    log-likelihoods of a reference, which are added to it. What the journals of their verdicts hold goes into the
    whole's (default: output + ".journal.sqlite"). The number of shards.

    count: of shards; default: by the files. The shards are removed unless `keep`. JpoError names what is missing."""
    found = counts(output)
    if count is None:
        if len(found) != 1:
            what = "there are none" if not found else f"there are those of {' and of '.join(map(str, found))}"
            raise JpoError(f"{output}: expected the shards of one run beside it, and {what}; say which with --shards N")
        count = found[0]
    shards = [Shard(index, count) for index in range(count)]
    paths = [shard.path(output) for shard in shards]
    missing = [shard for shard, path in zip(shards, paths, strict=True) if not os.path.exists(path)]
    if missing:
        raise JpoError(
            f"{output}: {len(missing)} of {count} shards are missing, the first is {missing[0].path(output)}; run the command "
            f"with --shard {missing[0]}"
        )

    _put_together(paths, output)
    books = [shard.path(journal) if journal else f"{shard.path(output)}.journal.sqlite" for shard in shards]
    books = [book for book in books if os.path.exists(book)]
    if books:
        from jpo.feedback.journal import merge

        merge(journal or f"{output}.journal.sqlite", books)
    if not keep:
        for name in paths + [f"{book}{end}" for book in books for end in ("", "-wal", "-shm")]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(name)
    return count
