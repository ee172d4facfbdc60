"""Records of a step dealt to slots, the costliest first. A pure function of their tokens, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence

from jpo.data.batches import Bin, forest_rows, longest_first
from jpo.data.encoding import Encoded


def deal(records: Sequence[Sequence[Encoded]], slots: int) -> list[list[int]]:
    """Which records each slot computes; ascending indices. A record goes where its text stands already (the fewest rows
    are added), as long as that slot stays within an even share of all rows; otherwise where the slot's rows stay
    fewest. Runs of neighbouring slots, which ranks are given, are even too."""
    if slots == 1:
        return [list(range(len(records)))]
    return [sorted(own.members) for own in spread(sorted(_bins(records, slots), key=lambda own: -own.rows))]


def _bins(records: Sequence[Sequence[Encoded]], slots: int) -> list[Bin]:
    even = forest_rows(records) / slots
    bins = [Bin() for _ in range(slots)]
    for member, segments in longest_first(records):
        alone = sum(rows for _, rows in segments)
        costs = [(own.added(segments), own) for own in bins]
        shared = [(added, own) for added, own in costs if added < alone and own.rows + added <= even]
        if shared:
            chosen = min(shared, key=lambda cost: (cost[0], cost[1].rows))[1]
        else:
            chosen = min(costs, key=lambda cost: (cost[0] + cost[1].rows, cost[0]))[1]
        chosen.put(member, segments)
    return bins


def spread(ordered: list[Bin]) -> list[Bin]:
    """The largest first -> each half, quarter and so on with about the same rows: of each four neighbours the outer two
    go into one half, the inner two into the other. Their number is a power of two."""
    if len(ordered) == 1:
        return ordered
    outer = [own for place, own in enumerate(ordered) if place % 4 in (0, 3)]
    inner = [own for place, own in enumerate(ordered) if place % 4 in (1, 2)]
    return spread(outer) + spread(inner)


def shares(records: Sequence[Sequence[Encoded]], slots: int, ranks: int) -> list[int]:
    """Rows that each rank computes of a step over these records."""
    rows = [forest_rows([records[i] for i in members]) for members in deal(records, slots)]
    return [sum(rows[rank * slots // ranks : (rank + 1) * slots // ranks]) for rank in range(ranks)]
