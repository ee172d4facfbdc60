"""What a step costs over ranks: rows by the real dealing, traffic and memory by counting, time by one measured step.

Knows rows, values and a network; never models or data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jpo.data.encoding import Encoded
from jpo.parallel.dealing import shares

_MESSAGES = 6  # small exchanges of a step: the norm, the metrics there and back, the agreement


@dataclass(frozen=True)
class Network:
    """What ranks talk over."""

    name: str
    bandwidth: float  # bytes/s, each way
    latency: float  # seconds of a message


SHARED = Network("shared memory", 2e9, 5e-6)
TEN_GBIT = Network("10 Gbit/s", 1.25e9 * 0.9, 2e-4)


@dataclass(frozen=True)
class StepCost:
    """A step over `ranks` ranks; seconds of its parts, for the rank that has the most to do."""

    ranks: int
    compute: float
    exchange: float
    balance: float  # mean rows of a rank over the most that one has

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exchange

    def efficiency(self, alone: float) -> float:
        """Share of the time in which `ranks` machines do what one does in `alone` seconds."""
        return alone / (self.ranks * self.seconds)


def traffic(values: int, ranks: int) -> float:
    """Bytes that each rank sends in a step: gradients to the shards' owners, parameters back."""
    return 2 * 4 * values * (ranks - 1) / ranks


def rank_bytes(values: int, ranks: int, slots: int) -> int:
    """Of values trained: parameters, gradients, the moments' shard and the partial sums of the slots' tree."""
    own = -(-slots // ranks)
    kept = max(0, math.ceil(math.log2(own))) if own > 1 else 0
    return 4 * values * (2 + kept) + 8 * -(-values // ranks)


def exchange_seconds(values: int, ranks: int, network: Network) -> float:
    """Seconds of the exchanges of a step of `values` trained values."""
    if ranks == 1:
        return 0.0
    hops = math.ceil(math.log2(ranks))
    return traffic(values, ranks) / network.bandwidth + network.latency * (2 * (ranks - 1) + _MESSAGES * hops)


def step_cost(
    steps: Sequence[Sequence[Sequence[Encoded]]], slots: int, ranks: int, alone: float, values: int, network: Network
) -> StepCost:
    """The mean over some steps' records; alone: seconds that one machine takes for such a step."""
    worst = even = 0.0
    for records in steps:
        rows = shares(records, slots, ranks)
        worst, even = worst + max(rows), even + sum(rows) / ranks
    balance = even / worst
    return StepCost(ranks, alone / ranks / balance, exchange_seconds(values, ranks, network), balance)
