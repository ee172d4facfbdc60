"""A trainer over the ranks of an MPI job: the same start on all of them, checked by name, and one team for the run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jpo import _core
from jpo.data.store import data_digest
from jpo.parallel import cost
from jpo.parallel.ranks import Alone
from jpo.parallel.team import Team, begun, code_digest, default_slots
from jpo.parallel.together import seconds_together
from jpo.train import checkpoint


@contextlib.contextmanager
def working_together(trainer: Any, resume: bool, mark_of: Callable[[Any], dict[str, str]]) -> Iterator[dict[str, str]]:
    """Inside the block the trainer belongs to the team of this process's MPI job, if it is one of several; gives the
    run's mark, mark_of(config). JpoError where ranks differ in options, data, base model, code or processor."""
    config = trainer.config
    output = config.output if resume else None
    team = begun(config.slots, lambda: checkpoint.slots_of(output) if output else None)
    trainer.config = dataclasses.replace(config, slots=team.slots)
    mark = mark_of(trainer.config)
    if team.ranks.size > 1:
        team.check_same(_told(trainer, mark))
    before, trainer.team = trainer.team, team
    try:
        yield mark
    finally:
        trainer.team, trainer.config = before, config


_PROBED = 8  # steps whose records are dealt to say how even they come out


def planned(
    trainer: Any,
    ranks: int | None,
    order: Any,
    sequences: Callable[[int], Any],
    found: Any,
    step: Callable[[], Any],
) -> dict[str, Any]:
    """What a dry run says of `ranks` ranks beside what it `found`: {} where none are asked for. sequences(i): those of
    record i; step(): computes the first step. The dealing is the real one; a machine's time is measured, that of ranks
    on this one by as many processes side by side (None where they are far too many); the network's is assumed."""
    if ranks is None:
        return {}
    slots = trainer.config.slots or default_slots(ranks)
    Team(Counted(ranks), slots)  # JpoError where they are too many
    steps = [[sequences(i) for i in order.batch(step)] for step in range(min(_PROBED, order.steps_per_epoch))]
    values, alone_seconds = found["trained_values"], found["step_seconds"]
    apart = cost.step_cost(steps, slots, ranks, alone_seconds, values, cost.TEN_GBIT)
    together = seconds_together(step, ranks)
    trainer.lm.trainable.grads[:] = 0
    here = None if together is None else cost.step_cost(steps, slots, ranks, together, values, cost.SHARED)
    tokens = sum(len(sequence) for records in steps for record in records for sequence in record) / len(steps)
    return {
        "over_ranks": {
            "ranks": ranks,
            "slots": slots,
            "even_share_of_rows": round(apart.balance, 3),
            "step_seconds_this_machine": None if here is None else round(here.seconds, 4),
            "tokens_per_second_this_machine": None if here is None else round(tokens / here.seconds, 1),
            "step_seconds_as_many_machines": round(apart.seconds, 4),
            "tokens_per_second_as_many_machines": round(tokens / apart.seconds, 1),
            "efficiency_as_many_machines": round(apart.efficiency(alone_seconds), 3),
            "sent_mb_each": round(cost.traffic(values, ranks) / 2**20, 2),
            "trained_memory_gb_each": round(cost.rank_bytes(values, ranks, slots) / 2**30, 4),
        }
    }


class Counted(Alone):
    """So many ranks, of which only the number matters."""

    def __init__(self, size: int):
        self.size = size


def _told(trainer: Any, mark: dict[str, str]) -> dict[str, str]:
    from jpo.evaluate.sampling import weights_digest

    own = {
        "base model or adapter": weights_digest(trainer.lm),
        "code": code_digest(),
        "isa": _core.system_info()["isa"],
    }
    sets = {f"evaluation data {name}": data_digest(items) for name, items in trainer.eval_sets.items()}
    return {f"option {key}" if key != "data" else key: value for key, value in mark.items()} | own | sets


@contextlib.contextmanager
def alone(trainer: Any) -> Iterator[None]:
    """Inside the block the trainer computes all its slots by itself, whatever the other ranks do."""
    before, trainer.team = trainer.team, Team(slots=trainer.team.slots)
    try:
        yield
    finally:
        trainer.team = before
