"""Flat float32 vectors between ranks: which rank owns which part, sums over the slots' tree, parts gathered again.

Every message is cut into buckets, so that no count comes near 2^31 (where Open MPI fails) and no copy of a whole vector
is made. Knows vectors and ranks; never models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jpo.parallel.ranks import Alone, Ranks

BLOCK = 65536  # values: shards end where the gradient's norm cuts its sums (csrc/bind/optimizer.c)
BUCKET = 1 << 22  # values of a message at most: 16 MiB
Vector = np.ndarray[Any, np.dtype[np.float32]]
Node = tuple[int, int]  # (level, index) in the slots' binary tree; slot s is (0, s)


def shards(size: int, ranks: int) -> list[tuple[int, int]]:
    """(first, end) of each rank's part of a vector of `size` values: whole blocks, as even as these allow."""
    blocks = -(-size // BLOCK)
    cuts = [min(size, BLOCK * (rank * blocks // ranks)) for rank in range(ranks + 1)]
    return list(zip(cuts, cuts[1:], strict=False))


def merged(node: Node, above: Node) -> Node | None:
    """The parent where `above`, which came before, is the left sibling of `node`."""
    level, index = node
    return (level + 1, index // 2) if index % 2 and above == (level, index - 1) else None


def nodes_of(slots: Sequence[int]) -> list[Node]:
    """The largest whole subtrees over a run of slots."""
    stack: list[Node] = []
    for slot in slots:
        node: Node = (0, slot)
        while stack and (parent := merged(node, stack[-1])):
            stack.pop()
            node = parent
        stack.append(node)
    return stack


class TreeSum:
    """Slots' gradients summed in the fixed binary tree: (0 + 1) + (2 + 3), and so on, whoever holds which slot.

    `add` is given the vector that gradients are added into, after each of this rank's slots in turn; it keeps what is
    not yet a part of a whole subtree and leaves the vector zero, or after the last slot with the last subtree's sum."""

    def __init__(self, slots: Sequence[int]):
        self.slots = list(slots)
        self.nodes = nodes_of(self.slots)
        self._stack: list[tuple[Node, Vector]] = []
        self._spare: list[Vector] = []

    def begin(self) -> None:
        """Forget what an interrupted step left."""
        self._spare += [vector for _, vector in self._stack]
        self._stack = []

    def add(self, slot: int, grads: Vector) -> None:
        """Take the finished gradient of `slot` out of grads."""
        node: Node = (0, slot)
        while self._stack and (parent := merged(node, self._stack[-1][0])):
            _, left = self._stack.pop()
            np.add(left, grads, out=grads)
            self._spare.append(left)
            node = parent
        if slot == self.slots[-1]:
            return
        kept = self._spare.pop() if self._spare else np.empty_like(grads)
        kept[:] = grads
        grads[:] = 0
        self._stack.append((node, kept))

    def vectors(self, grads: Vector) -> list[Vector]:
        """The sums of self.nodes, in their order, after the last slot."""
        return [vector for _, vector in self._stack] + [grads]


def _pieces(bounds: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Parts of all shards at once, so small that those of all ranks together are one bucket."""
    longest = max(end - first for first, end in bounds)
    step = max(1, BUCKET // len(bounds))
    for at in range(0, longest, step):
        yield [(min(first + at, end), min(first + at + step, end)) for first, end in bounds]


def reduce_scatter(ranks: Alone, trees: Sequence[Sequence[Node]], own: Sequence[Vector], out: Vector) -> None:
    """out (this rank's shard) = the sum over all ranks' subtrees, in the slots' tree.

    trees: the nodes of each rank; own: this rank's vectors (P,), one a node. Alltoall of shards, then the same tree on
    every rank: the sum of a value never depends on who computes it."""
    assert isinstance(ranks, Ranks)
    from mpi4py import MPI

    me, size = ranks.rank, len(own[0])
    bounds = shards(size, ranks.size)
    counts = [len(nodes) for nodes in trees]
    for piece in _pieces(bounds):
        lengths = [end - first for first, end in piece]
        sending = [counts[me] * length for length in lengths]
        receiving = [count * lengths[me] for count in counts]
        sent = np.concatenate([vector[first:end] for first, end in piece for vector in own])
        got = np.empty(sum(receiving), dtype=np.float32)
        ranks.comm.Alltoallv(
            [sent, sending, _starts(sending), MPI.FLOAT], [got, receiving, _starts(receiving), MPI.FLOAT]
        )
        parts = got.reshape(sum(counts), lengths[me])
        first, end = (at - bounds[me][0] for at in piece[me])
        out[first:end] = _tree([node for nodes in trees for node in nodes], list(parts))


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:place]) for place in range(len(counts))]


def _tree(nodes: Sequence[Node], vectors: Sequence[Vector]) -> Vector:
    """The root's sum over subtrees that stand in the order of their slots."""
    stack: list[tuple[Node, Vector]] = []
    for node, vector in zip(nodes, vectors, strict=True):
        while stack and (parent := merged(node, stack[-1][0])):
            np.add(stack.pop()[1], vector, out=vector)
            node = parent
        stack.append((node, vector))
    assert len(stack) == 1, "the ranks' slots make a whole tree"
    return stack[0][1]


def allgather_into(ranks: Alone, vector: Vector) -> None:
    """Every rank's own shard of `vector` into that of all others."""
    if not isinstance(ranks, Ranks):
        return
    from mpi4py import MPI

    me = ranks.rank
    for piece in _pieces(shards(len(vector), ranks.size)):
        counts = [end - first for first, end in piece]
        got = np.empty(sum(counts), dtype=np.float32)
        first, end = piece[me]
        ranks.comm.Allgatherv(np.ascontiguousarray(vector[first:end]), [got, counts, _starts(counts), MPI.FLOAT])
        for (first, end), start, count in zip(piece, _starts(counts), counts, strict=True):
            vector[first:end] = got[start : start + count]


def bcast_into(ranks: Alone, vector: Vector) -> None:
    """Rank 0's vector into that of all others."""
    if isinstance(ranks, Ranks):
        for at in range(0, len(vector), BUCKET):
            ranks.comm.Bcast(vector[at : at + BUCKET], 0)


class Sharded:
    """A vector of `size` values of which each rank holds its shard. Rank 0 reads it piece by piece (pieces), while
    every other rank gives its own (give), so that the whole stands nowhere."""

    def __init__(self, ranks: Alone, shard: Vector, size: int):
        self.ranks, self.shard, self.size = ranks, shard, size

    @property
    def shape(self) -> tuple[int]:
        """That of the whole vector."""
        return (self.size,)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole vector."""
        return 4 * self.size

    def pieces(self) -> Iterator[Vector]:
        """On rank 0: the vector from its beginning to its end."""
        for rank, (first, end) in enumerate(shards(self.size, self.ranks.size)):
            if rank == 0:
                yield self.shard
                continue
            assert isinstance(self.ranks, Ranks)
            for at in range(first, end, BUCKET):
                got = np.empty(min(BUCKET, end - at), dtype=np.float32)
                self.ranks.comm.Recv(got, rank)
                yield got

    def give(self) -> None:
        """On every other rank: what rank 0's pieces read."""
        assert isinstance(self.ranks, Ranks)
        for at in range(0, len(self.shard), BUCKET):
            self.ranks.comm.Send(self.shard[at : at + BUCKET], 0)
