"""From turns to figures: medians, ratios between neighbours in time, the share of the limit, goals met or not."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

from .cases import Case, Goal

MET, UNMET, UNKNOWN = "met", "not met", "not measured"
# case -> (exponent of time, exponent of memory) that the arithmetic allows at most, between the two largest sizes
ORDERS = {
    "growth-length": (2.0, 1.0),
    "growth-vocabulary": (1.0, 1.0),
    "growth-batch": (1.0, 0.5),
    "growth-width": (2.0, 2.0),
}


def yardstick_rate(outcome: dict[str, Any]) -> float | None:
    """Median of all that the yardstick measured in this case (flop/s or bytes/s)."""
    rates = [rate for turn in outcome["turns"] for rate in turn["rates"]]
    return statistics.median(rates) if rates else None


def wave_rates(outcome: dict[str, Any]) -> dict[int, float]:
    """Wave -> median of what the yardstick measured in it, because a shared machine's speed drifts between waves."""
    rates: dict[int, list[float]] = {}
    for turn in outcome["turns"]:
        rates.setdefault(turn["wave"], []).extend(turn["rates"])
    return {wave: statistics.median(found) for wave, found in rates.items()}


def speed(work: dict[str, Any], turn: dict[str, Any]) -> float:
    """Units a second; what a contestant counted itself stands before the work's count."""
    return float(turn.get("units", work["units"][turn["turn"]])) / float(turn["seconds"])


def paired_ratio(work: dict[str, Any], ours: dict[str, Any], peer: dict[str, Any]) -> float | None:
    """Median over turns of (our speed / the peer's), each turn against ours of the same number and wave, or where there
    is none against our median in that wave."""
    own: dict[int, dict[int, float]] = {}
    for turn in ours["turns"]:
        own.setdefault(turn["wave"], {})[turn["turn"]] = speed(work, turn)
    ratios = [
        own[turn["wave"]].get(turn["turn"], statistics.median(own[turn["wave"]].values())) / speed(work, turn)
        for turn in peer["turns"]
        if turn["wave"] in own
    ]
    return statistics.median(ratios) if ratios else None


def rows(case: Case, work: dict[str, Any], outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of the table for each entry."""
    rates = wave_rates(outcomes[0])
    ours = next((one for one in outcomes if one["label"] == case.ours), None)
    table = []
    for outcome in outcomes[1:]:
        row: dict[str, Any] = {"label": outcome["label"], "note": outcome["note"], "n": len(outcome["turns"])}
        if outcome["turns"]:
            row["peak_gb"] = outcome["peak_gb"]
            row |= _accuracy(ours, outcome) if case.kind == "accuracy" else _speed(case, work, outcome, rates)
            if ours and ours["turns"] and outcome is not ours and case.kind in ("speed", "seconds"):
                row["ratio"] = paired_ratio(work, ours, outcome)
        table.append(row)
    return table


def _speed(case: Case, work: dict[str, Any], outcome: dict[str, Any], rates: dict[int, float]) -> dict[str, Any]:
    turns = outcome["turns"]
    if case.kind in ("seconds", "growth"):
        return {"figure": statistics.median(turn["seconds"] for turn in turns)}
    row: dict[str, Any] = {"figure": statistics.median(speed(work, turn) for turn in turns)}
    known = [(turn, rates[turn["wave"]]) for turn in turns if turn["wave"] in rates]
    if known and "flops" in work:
        row["share"] = statistics.median(work["flops"][turn["turn"]] / rate / turn["seconds"] for turn, rate in known)
        row["per_yardstick"] = statistics.median(speed(work, turn) / (rate / 1e9) for turn, rate in known)
    for name in ("rows", "added_gb"):
        if name in turns[0]:
            row[name] = statistics.median(turn[name] for turn in turns)
    return row


def _accuracy(ours: dict[str, Any] | None, outcome: dict[str, Any]) -> dict[str, Any]:
    """Mean absolute error of D, and the largest relative error of a gradient matrix."""
    if not ours or not ours["turns"]:
        return {}
    truth, got = ours["turns"][0], outcome["turns"][0]
    difference = np.subtract(got["D"], truth["D"])
    row: dict[str, Any] = {"figure": float(np.abs(difference).mean()), "deviation_of_D": float(np.std(truth["D"]))}
    if "gradients" in got and outcome is not ours:
        with np.load(truth["gradients"]) as right, np.load(got["gradients"]) as ones:
            errors = [float(np.linalg.norm(ones[n] - right[n]) / np.linalg.norm(right[n])) for n in right.files]
        row["gradient"] = max(errors)
        row["note"] = f"gradients: worst {max(errors):.1e}, median {statistics.median(errors):.1e}"
    return row


def judge(case: Case, work: dict[str, Any], table: list[dict[str, Any]], outcomes: list[Any]) -> list[dict[str, Any]]:
    """Each goal with what was measured."""
    if case.kind == "growth":
        return _orders(case, table)
    by_label = {outcome["label"]: outcome for outcome in outcomes}
    judged = []
    for goal in case.goals:
        value = _value(goal, work, {row["label"]: row for row in table}, by_label)
        judged.append(_judged(goal.of, goal.text, goal.bound, value, goal.at_most))
    return judged


def _judged(of: str, text: str, bound: float, value: float | None, at_most: bool) -> dict[str, Any]:
    verdict = UNKNOWN
    if value is not None:
        verdict = MET if (value <= bound if at_most else value >= bound) else UNMET
    return {"of": of, "goal": text, "bound": bound, "value": value, "verdict": verdict}


def _value(goal: Goal, work: dict[str, Any], table: dict[str, Any], outcomes: dict[str, Any]) -> float | None:
    if goal.of not in table or "figure" not in table[goal.of]:
        return None
    own = table[goal.of]
    if goal.figure == "ratio":
        names = [name for name in table if goal.against(name)]
        ratios = [paired_ratio(work, outcomes[goal.of], outcomes[name]) for name in names]
        return min((ratio for ratio in ratios if ratio is not None), default=None)
    if not goal.to:
        value = own.get(goal.figure)
        return None if value is None else float(value)
    other = table.get(goal.to, {})
    if "figure" not in other:
        return None
    if goal.figure == "memory_ratio":
        return float(own["peak_gb"] / other["peak_gb"])
    if goal.figure == "error_ratio":
        return float(own["figure"] / other["figure"])
    assert goal.figure == "sharing", goal.figure
    faster = paired_ratio(work, outcomes[goal.to], outcomes[goal.of])
    return None if faster is None else faster * other["rows"] / own["rows"]


def _orders(case: Case, table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of time and memory between the two largest sizes, against the order that the arithmetic has."""
    points = [(float(row["label"].rpartition(", ")[2]), row) for row in table if "figure" in row]
    if case.name not in ORDERS or len(points) < 2:
        return []
    (small, before), (large, after) = points[-2:]
    judged = []
    for name, bound in zip(("figure", "peak_gb"), ORDERS[case.name]):
        order = math.log(after[name] / before[name]) / math.log(large / small)
        text = f"{'time' if name == 'figure' else 'memory'} grows with order <= {bound:g} (10 % allowed)"
        judged.append(_judged(f"{small:g} -> {large:g}", text, bound + 0.1, order, at_most=True))
    return judged
