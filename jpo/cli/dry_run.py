"""What --dry-run of a training command prints: amounts, memory, time and what another compute type would take."""

from __future__ import annotations

from typing import Any

from jpo.cli.tables import show
from jpo.memory import size

_APART = {
    "memory_gb",
    "free_gb",
    "buffers_gb",
    "step_seconds",
    "total_seconds",
    "step_seconds_by_compute",
    "over_ranks",
}


def show_plan(found: dict[str, Any]) -> None:
    """The mapping of a trainer's dry_run() as a table."""
    from jpo.train.progress import duration

    gb = 2**30
    rows = {key.replace("_", " "): value for key, value in found.items() if key not in _APART}
    rows["memory"] = {name: size(value * gb) for name, value in found["memory_gb"].items()}
    rows["memory"]["free"] = size(found["free_gb"] * gb)
    rows["time of a step"] = duration(found["step_seconds"])
    rows["time together"] = duration(found["total_seconds"])
    rows["time of a step by compute"] = {
        name: value if isinstance(value, str) else duration(value)
        for name, value in found["step_seconds_by_compute"].items()
    }
    if over := found.get("over_ranks"):
        rows[f"over {over['ranks']} ranks"] = {
            "time of a step, all on this machine": _speed(over, "this_machine"),
            "time of a step, each on a machine like this one": _speed(over, "as_many_machines"),
            "efficiency then, at 10 Gbit/s": f"{100 * over['efficiency_as_many_machines']:.0f} %",
            "mean of the ranks' rows over the most": f"{100 * over['even_share_of_rows']:.0f} %",
            "sent by each in a step": f"{over['sent_mb_each']} MB",
            "trained values, gradients, moments on each": size(over["trained_memory_gb_each"] * gb),
            "slots": over["slots"],
        }
    show("dry run: nothing was written", rows)


def _speed(over: dict[str, Any], where: str) -> str:
    """A step's time and its tokens/s."""
    from jpo.train.progress import duration

    seconds = over[f"step_seconds_{where}"]
    if seconds is None:
        return "not measured: far more ranks than processors"
    return f"{duration(seconds)} ({over[f'tokens_per_second_{where}']:.0f} tokens/s)"
