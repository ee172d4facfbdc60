"""A team: ranks, and the slots of an optimizer step that are dealt to them.

Which slot computes what, and the order of every sum, depend on the number of slots alone; the ranks only share the
work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jpo.data.encoding import Encoded
from jpo.errors import JpoError
from jpo.parallel import exchange
from jpo.parallel.dealing import deal
from jpo.parallel.ranks import Alone, joined

SLOTS = 8  # of a run over ranks, where nothing else is asked for


def default_slots(ranks: int) -> int:
    """8, or for more ranks than that the next power of two."""
    return max(SLOTS, 1 << (ranks - 1).bit_length())


class Team:
    """`slots` slots over `ranks`; one slot and one process is the plain arithmetic of a run without ranks."""

    def __init__(self, ranks: Alone | None = None, slots: int = 1):
        self.ranks = ranks or Alone()
        self.slots = slots
        if self.ranks.size > slots:
            raise JpoError(
                f"{self.ranks.size} ranks share at most as many slots of a step, and this run has {slots}"
                + ("; it was begun without ranks: go on with one process" if slots == 1 else "")
                + "; a new run takes --slots N (a power of two)"
            )
        self.trees = [exchange.nodes_of(self._slots_of(rank)) for rank in range(self.ranks.size)]
        self.tree = exchange.TreeSum(self.own)

    def _slots_of(self, rank: int) -> range:
        return range(rank * self.slots // self.ranks.size, (rank + 1) * self.slots // self.ranks.size)

    @property
    def own(self) -> range:
        """The slots of this rank."""
        return self._slots_of(self.ranks.rank)

    @property
    def root(self) -> bool:
        """Whether this process writes, prints and decides."""
        return self.ranks.root

    def deal(self, records: Sequence[Sequence[Encoded]]) -> list[list[int]]:
        """Indices of the records of each slot."""
        return deal(records, self.slots)

    def close(self, slot: int, grads: np.ndarray[Any, Any]) -> None:
        """`slot` has added all its gradients into grads."""
        if self.slots > 1:
            self.tree.add(slot, grads)

    def mapped(self, items: Sequence[Any], function: Callable[[Sequence[Any]], np.ndarray[Any, Any]]) -> Any:
        """(N, ...) values of N items, computed slot by slot by runs of neighbours, and shared; function gives one row
        an item."""
        cuts = [slot * len(items) // self.slots for slot in range(self.slots + 1)]
        own = [function(items[cuts[slot] : cuts[slot + 1]]) for slot in self.own if cuts[slot] < cuts[slot + 1]]
        return np.concatenate([part for rank in self.ranks.allgather(own) for part in rank])

    def agree(self, *flags: int) -> tuple[int, ...]:
        """The largest of each flag over all ranks."""
        return tuple(map(max, zip(*self.ranks.allgather(flags), strict=True)))

    def check_same(self, told: Mapping[str, str]) -> None:
        """JpoError, on every rank alike, where `told` (name -> digest or value) is not the same on all of them."""
        found = self.ranks.allgather((os.uname().nodename, dict(told)))
        host, first = found[0]
        faults = []
        for rank, (name, other) in enumerate(found):
            names = [key for key in first.keys() | other.keys() if first.get(key) != other.get(key)]
            shown = [
                f"{key} ({other.get(key)} there, {first.get(key)} here)" if len(str(other.get(key))) < 40 else key
                for key in sorted(names)
            ]
            if names:
                faults.append(f"rank {rank} on {name}: {', '.join(shown)}")
        if faults:
            raise JpoError(f"ranks differ from rank 0 on {host}, so no step was made: {'; '.join(faults)}")


def begun(slots: int | None, held: Callable[[], int | None]) -> Team:
    """The team of a run: the ranks of this job; slots as asked for, as the resumed run had them (held(), asked on rank
    0 alone), or the default."""
    ranks = joined()
    chosen = ranks.bcast((slots or held()) if ranks.root else None)
    if chosen is None:
        alone = type(ranks) is Alone
        chosen = 1 if alone else default_slots(ranks.size)
    return Team(ranks, chosen)


def code_digest() -> str:
    """Of jpo's own files, the core included: ranks must run the same program."""
    import jpo

    sha = hashlib.sha256()
    folder = Path(jpo.__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.glob("_core*.so")]):
        sha.update(str(path.relative_to(folder)).encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()
