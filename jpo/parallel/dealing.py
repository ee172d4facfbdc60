"""Records of a step dealt to slots, the costliest first. A pure function of their tokens, the same on every rank."""

from __future__ import annotations

import heapq
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
    """Only slots that hold some of a record's text, and the one with the fewest rows, are looked at: thousands of
    records are dealt to hundreds of slots in a fraction of a second."""
    even = forest_rows(records) / slots
    bins = [Bin() for _ in range(slots)]
    holders: dict[object, set[int]] = {}
    fewest = [(0, place) for place in range(slots)]  # a heap of (rows, slot); entries of other rows are out of date
    for member, segments in longest_first(records):
        places = sorted({place for key, _ in segments for place in holders.get(key, ())})
        costs = [(bins[place].added(segments), bins[place].rows, place) for place in places]
        shared = [cost for cost in costs if cost[0] + cost[1] <= even]
        while bins[fewest[0][1]].rows != fewest[0][0]:
            heapq.heappop(fewest)
        rows, place = fewest[0]
        costs.append((bins[place].added(segments), rows, place))
        chosen = min(shared)[2] if shared else min(costs, key=lambda cost: (cost[0] + cost[1], cost[0], cost[2]))[2]
        bins[chosen].put(member, segments)
        heapq.heappush(fewest, (bins[chosen].rows, chosen))
        for key, _ in segments:
            holders.setdefault(key, set()).add(chosen)
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
