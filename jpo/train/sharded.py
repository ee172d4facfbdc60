"""AdamW whose moments are dealt to the ranks (ZeRO-1, arXiv 1910.02054): each updates its shard and gathers the
others'.

Bit for bit what one process computes: every value's update is its own, the norm's sums stand in one order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jpo import _core
from jpo.parallel import exchange
from jpo.parallel.team import Team
from jpo.train.config import TrainingConfig
from jpo.train.optimizer import AdamW


class ShardedAdamW(AdamW):
    """AdamW over the ranks of a team; params (P,) stand whole on each of them, m and v are its shard of the moments."""

    def __init__(self, params: np.ndarray[Any, Any], config: TrainingConfig, team: Team):
        self.team, self.whole = team, params
        first, end = exchange.shards(params.size, team.ranks.size)[team.ranks.rank]
        super().__init__(params[first:end], config)

    def step(self, grads: np.ndarray[Any, Any], rate: float) -> float:
        """Sum the ranks' gradients, clip, update, zero; returns the norm before clipping. Every rank calls it."""
        ranks = self.team.ranks
        own = grads
        if ranks.size > 1:
            own = np.empty_like(self.params)
            exchange.reduce_scatter(ranks, self.team.trees, self.team.tree.vectors(grads), own)
        total = 0.0
        for value in np.concatenate(ranks.allgather(_core.grad_squares(own))).tolist():
            total += value
        norm = math.sqrt(total)
        self.update(own, rate, norm)
        exchange.allgather_into(ranks, self.whole)
        self.team.tree.begin()
        grads[:] = 0
        return norm

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: to be read on rank 0, while every other rank calls give_state."""
        if self.team.ranks.size == 1:
            return super().state()
        sharded = {name: exchange.Sharded(self.team.ranks, own, self.whole.size) for name, own in self._moments()}
        return {"params": self.whole, **sharded}

    def _moments(self) -> list[tuple[str, np.ndarray[Any, Any]]]:
        return [("m", self.m), ("v", self.v)]

    def give_state(self) -> None:
        """On a rank that does not write: its part of what rank 0 reads."""
        for _, own in self._moments():
            exchange.Sharded(self.team.ranks, own, self.whole.size).give()

    def load(self, tensors: dict[str, np.ndarray[Any, Any]], count: int) -> None:
        """Back to a checkpoint's state, which rank 0 has read; `tensors` is empty on the others. Every rank calls
        it."""
        ranks = self.team.ranks
        whole = np.empty_like(self.whole) if tensors == {} else None
        first, end = exchange.shards(self.whole.size, ranks.size)[ranks.rank]
        for name, own in (("params", self.whole), ("m", self.m), ("v", self.v)):
            values = tensors[name] if whole is None else whole
            exchange.bcast_into(ranks, values)
            own[:] = values if name == "params" else values[first:end]
        self.count = ranks.bcast(count)


def optimizer_of(params: np.ndarray[Any, Any], config: TrainingConfig, team: Team) -> AdamW:
    """The plain one for a run of one slot, otherwise that of the team."""
    return AdamW(params, config) if team.slots == 1 else ShardedAdamW(params, config, team)
