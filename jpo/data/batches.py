"""The order of data, and how the records of one optimizer step are cut into micro-batches.

Everything here is a pure function of its arguments: (seed, epoch, step) give the order, token lengths the cut. That
is what makes resumption exact and results independent of threads and processes. Knows lengths; never the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jpo.data.encoding import Encoded
from jpo.data.shuffle import Shuffle
from jpo.data.words import raw_words
from jpo.errors import JpoError

Way = Literal["argsort", "feistel"]
LARGE = 1 << 18  # records; above, an order is computed place by place (jpo.data.shuffle), below it is held


def permutation(count: int, seed: int, *stream: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(count,) int64: a permutation of range(count), a pure function of its arguments."""
    return np.argsort(raw_words(count, seed, *stream), kind="stable")


class Order:
    """Which records make up each optimizer step: a new permutation for each epoch, its last step may be smaller.

    `way`: how a permutation comes about. Up to LARGE records it is sorted out and held (argsort), as in every version;
    above, it is computed place by place and nothing is held (feistel)."""

    def __init__(self, count: int, batch_size: int, seed: int):
        for name, value in (("count", count), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise JpoError(f"{name}: expected a positive integer, got {value!r}")
        self.count, self.batch_size, self.seed = int(count), int(batch_size), int(seed)
        self.way: Way = "feistel" if count > LARGE else "argsort"
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every record once."""
        return -(-self.count // self.batch_size)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, to which optimizer step `step`, from 0, belongs."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """Indices of the records of optimizer step `step`, from 0."""
        if step < 0:
            raise JpoError(f"step: expected 0 or more, got {step}")
        epoch, within = divmod(step, self.steps_per_epoch)
        first = within * self.batch_size
        if self.way == "feistel":
            return Shuffle(self.count, self.seed, epoch).places(first, first + self.batch_size).tolist()  # type: ignore[no-any-return]
        if epoch != self._epoch:
            self._permutation, self._epoch = permutation(self.count, self.seed, epoch), epoch
        return [int(index) for index in self._permutation[first : first + self.batch_size]]


class GroupedOrder:
    """As Order, over groups of records that stay in one step together (iopo's); `groups` holds each one's indices.

    A step takes as many groups as fit into `batch_size` records on average, at least one."""

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int, seed: int):
        self.groups = [list(group) for group in groups]
        records = sum(map(len, self.groups))
        self._order = Order(len(self.groups), max(1, round(batch_size * len(self.groups) / max(1, records))), seed)
        self.steps_per_epoch = self._order.steps_per_epoch

    @property
    def way(self) -> Way:
        """How the groups' permutation comes about (Order.way)."""
        return self._order.way

    @way.setter
    def way(self, way: Way) -> None:
        self._order.way = way

    def batch(self, step: int) -> list[int]:
        """Indices of the records of optimizer step `step`, from 0."""
        return [index for place in self._order.batch(step) for index in self.groups[place]]


class Bin:
    """Records that share one forest: equal prompts stand there once, and so do equal (prompt, response)."""

    def __init__(self) -> None:
        self.members: list[int] = []
        self.rows = 0
        self.seen: set[tuple[bytes, bytes | None]] = set()

    def added(self, segments: Sequence[tuple[tuple[bytes, bytes | None], int]]) -> int:
        """Rows that a record of these segments adds."""
        return sum(rows for key, rows in segments if key not in self.seen)

    def put(self, member: int, segments: Sequence[tuple[tuple[bytes, bytes | None], int]]) -> None:
        """Add record `member`."""
        self.rows += self.added(segments)
        self.seen.update(key for key, _ in segments)
        self.members.append(member)


def _segments(sequences: Sequence[Encoded]) -> list[tuple[tuple[bytes, bytes | None], int]]:
    """The distinct segments of one record's sequences, with their rows."""
    distinct: dict[tuple[bytes, bytes | None], int] = {}
    for sequence in sequences:
        prompt = sequence.prompt.tobytes()
        distinct[prompt, None] = len(sequence.prompt)
        distinct[prompt, sequence.response.tobytes()] = len(sequence.response)
    return list(distinct.items())


def forest_rows(records: Sequence[Sequence[Encoded]]) -> int:
    """Rows that the forest of these records computes at most, after sharing equal prompts and equal sequences."""
    whole = Bin()
    for member, sequences in enumerate(records):
        whole.put(member, _segments(sequences))
    return whole.rows


def micro_batches(records: Sequence[Sequence[Encoded]], token_budget: int) -> list[list[int]]:
    """Cuts records (each a pair's two sequences, or one) into groups of at most `token_budget` rows after sharing.

    Longest first (records of one prompt together), each into the group where it adds the fewest rows; a record longer
    than the budget stands alone. The sequences of a record stay together. Groups hold indices, ascending, and stand in
    the order of their first.
    """
    if isinstance(token_budget, bool) or not isinstance(token_budget, (int, np.integer)) or token_budget < 1:
        raise JpoError(f"token_budget: expected a positive integer, got {token_budget!r}")
    groups: list[Bin] = []
    for member, segments in longest_first(records):
        fitting = [group for group in groups if group.rows + group.added(segments) <= token_budget]
        if not fitting:
            groups.append(Bin())
            fitting = groups[-1:]
        min(fitting, key=lambda group: (group.added(segments), -group.rows)).put(member, segments)
    return sorted(sorted(group.members) for group in groups)


def longest_first(
    records: Sequence[Sequence[Encoded]],
) -> Iterator[tuple[int, list[tuple[tuple[bytes, bytes | None], int]]]]:
    """Records with their segments; those of one prompt follow each other, the prompt with the most rows first."""
    segments = [_segments(sequences) for sequences in records]
    rows = [sum(count for _, count in found) for found in segments]
    prompts = [sequences[0].prompt.tobytes() for sequences in records]
    firsts: dict[bytes, int] = {}
    shared: dict[bytes, int] = {}
    for index, prompt in enumerate(prompts):
        firsts.setdefault(prompt, index)
        shared[prompt] = shared.get(prompt, 0) + rows[index]
    for member in sorted(
        range(len(records)), key=lambda index: (-shared[prompts[index]], firsts[prompts[index]], -rows[index], index)
    ):
        yield member, segments[member]
