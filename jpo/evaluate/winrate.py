"""Win-rates against gold responses, (win + tie / 2) / total: from verdict caches, and tables over judged generations.

A verdict cache is JSON: {model: {"instruction<SEP><SEP><SEP><SEP>gold<SEP><SEP><SEP><SEP>output": verdict}} with the
verdicts "model", "gold" and "equal". Judged generations are what jpo.evaluate.judging writes: one record an output, as
response_0, beside the gold response, as response_1, with `feedback`. Knows verdicts; never judges.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jpo.errors import DataError
from jpo.evaluate.statistics import bootstrap_difference, length_controlled, share_interval, wilson

SEPARATOR = "<SEP><SEP><SEP><SEP>"
_SCORES = {"model": 1.0, "gold": 0.0, "equal": 0.5}


@dataclass(frozen=True)
class WinRate:
    """Counts of verdicts; `scores` holds each item's (1, 0 or 1/2) by its instruction and gold, for paired comparisons;
    `longer` counts outputs with more characters than gold."""

    wins: int
    losses: int
    ties: int
    longer: int
    scores: dict[tuple[str, str], float]

    @property
    def total(self) -> int:
        """Items judged."""
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float:
        """(win + tie / 2) / total."""
        return (self.wins + self.ties / 2) / self.total

    def to_dict(self) -> dict[str, Any]:
        """Counts, unrounded rate, 95 % interval and the share longer than gold."""
        low, high = wilson(self.wins + self.ties / 2, self.total)
        counts = {"wins": self.wins, "losses": self.losses, "ties": self.ties, "total": self.total}
        return counts | {"win_rate": self.rate, "low": low, "high": high, "longer_than_gold": self.longer / self.total}


def _unique(path: str) -> Any:
    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DataError(f"{path}: the key {key[:80]!r} stands twice")
            found[key] = value
        return found

    return hook


def read_verdicts(path: str | os.PathLike[str]) -> dict[str, WinRate]:
    """model -> WinRate of a verdict cache; DataError names the file, the model and the malformed key or verdict."""
    return {model: _win_rate(verdicts) for model, verdicts in read_cache(path).items()}


def read_cache(path: str | os.PathLike[str]) -> dict[str, dict[tuple[str, str, str], str]]:
    """model -> (instruction, gold, output) -> verdict, checked; see read_verdicts."""
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            cache = json.load(file, object_pairs_hook=_unique(name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(cache, dict) or not cache:
        raise DataError(f"{name}: expected a mapping of models to verdicts, got {type(cache).__name__}")
    return {model: _checked(name, model, verdicts) for model, verdicts in cache.items()}


def _checked(name: str, model: str, verdicts: Any) -> dict[tuple[str, str, str], str]:
    if not isinstance(verdicts, dict) or not verdicts:
        raise DataError(f"{name}: model {model!r}: expected a mapping of items to verdicts, got {verdicts!r:.80}")
    found: dict[tuple[str, str, str], str] = {}
    for key, verdict in verdicts.items():
        parts = key.split(SEPARATOR)
        if len(parts) != 3:
            raise DataError(
                f"{name}: model {model!r}: key {key[:80]!r} has {len(parts)} parts; expected instruction, gold and output, "
                f"separated by {SEPARATOR}"
            )
        if not isinstance(verdict, str) or verdict not in _SCORES:
            raise DataError(
                f"{name}: model {model!r}: verdict {verdict!r} of {key[:80]!r} is none of model, gold, equal"
            )
        found[parts[0], parts[1], parts[2]] = verdict
    return found


def _win_rate(verdicts: Mapping[tuple[str, str, str], str]) -> WinRate:
    counts = dict.fromkeys(_SCORES, 0)
    scores: dict[tuple[str, str], float] = {}
    longer = 0
    for (instruction, gold, output), verdict in verdicts.items():
        counts[verdict] += 1
        scores[instruction, gold] = _SCORES[verdict]
        longer += len(output) > len(gold)
    return WinRate(counts["model"], counts["gold"], counts["equal"], longer, scores)


# --- tables over judged generations -------------------------------------------------------------------------------

FEW_RUNS = 3  # below this many training seeds a table is called underpowered


def win_rates(judged: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{win_rates, comparisons, underpowered}: win-rates by model and temperature, and paired differences of models.

    judged: rows of judge_generations: id, model, temperature, seed, training_seed where there is one, response_0 (the
    output), response_1 (gold), feedback (0 the output, 1 gold, 2 equal, null failed: counted, not scored).
    win_rates[model][temperature] holds win_rate, low, high (the mean over training seeds with Student's 95 % interval;
    without training seeds, over sampling seeds), runs (how many), items (the mean over items with its interval, seeds
    averaged), length_controlled (likewise over the runs that could be fitted, and `problem`: why others could not),
    longer_than_gold, wins, losses, ties, failed, total, and by_run.
    comparisons: at each temperature, bootstrap over the items that both models answered, seeds averaged.
    """
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    seen: set[tuple[Any, ...]] = set()
    for row in judged:
        key = tuple(row.get(name) for name in ("id", "model", "temperature", "seed", "training_seed", "sample"))
        if key in seen:
            raise DataError(f"{row.get('where', 'judged')}: the output of {key} stands twice; leave one of them out")
        seen.add(key)
        cells.setdefault(str(row["model"]), {}).setdefault(f"{float(row['temperature']):g}", []).append(row)
    table = {
        model: {degree: _cell(rows) for degree, rows in sorted(degrees.items(), key=lambda pair: float(pair[0]))}
        for model, degrees in cells.items()
    }
    runs = [cell["runs"] for degrees in table.values() for cell in degrees.values()]
    return {"win_rates": table, "comparisons": _comparisons(cells), "underpowered": min(runs, default=0) < FEW_RUNS}


def _cell(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_run: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(_run(row), []).append(row)
    runs = {run: _counts(found) for run, found in by_run.items()}
    means = share_interval([run["win_rate"] for run in runs.values() if run["total"]])
    fits = [run["length_controlled"] for run in runs.values() if run["total"]]
    problems = {fit["problem"] for fit in fits if fit["problem"]}
    whole = _counts(rows)
    return {
        "win_rate": means["mean"],
        "low": means["low"],
        "high": means["high"],
        "runs": means["n"],
        "items": share_interval(list(_item_scores(rows).values())),
        "length_controlled": {
            **share_interval([fit["win_rate"] for fit in fits if fit["win_rate"] is not None]),
            "problem": "; ".join(sorted(problems)) or None,
        },
        **{key: whole[key] for key in ("longer_than_gold", "wins", "losses", "ties", "failed", "total")},
        "by_run": runs,
    }


def _run(row: Mapping[str, Any]) -> str:
    training = row.get("training_seed")
    return f"training seed {training}" if training is not None else f"seed {row.get('seed')}"


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One run's counts, its win-rate with Wilson's interval, and its length-controlled win-rate."""
    scored = [row for row in rows if row["feedback"] is not None]
    scores = [_score(row) for row in scored]
    total = len(scored)
    own, gold = ([text_length(row[key]) for row in scored] for key in ("response_0", "response_1"))
    low, high = wilson(sum(scores), total)
    return {
        "wins": scores.count(1.0),
        "losses": scores.count(0.0),
        "ties": scores.count(0.5),
        "failed": len(rows) - total,
        "total": total,
        "win_rate": sum(scores) / total if total else None,
        "low": low if total else None,
        "high": high if total else None,
        "length_controlled": length_controlled(scores, own, gold),
        "longer_than_gold": sum(a > b for a, b in zip(own, gold, strict=True)) / total if total else None,
    }


def text_length(text: Any) -> int:
    """Characters of a text, or of a conversation's contents."""
    return len(text) if isinstance(text, str) else sum(len(turn["content"]) for turn in text)


def _score(row: Mapping[str, Any]) -> float:
    return (1.0, 0.0, 0.5)[int(row["feedback"])]


def _item_scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Each item's mean score over its seeds and samples."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["feedback"] is not None:
            scores.setdefault(str(row["id"]), []).append(_score(row))
    return {key: sum(values) / len(values) for key, values in scores.items()}


def _comparisons(cells: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    found = []
    for a, b in itertools.combinations(cells, 2):
        for degree in sorted(cells[a].keys() & cells[b].keys(), key=float):
            left, right = (_item_scores(cells[model][degree]) for model in (a, b))
            shared = sorted(left.keys() & right.keys())
            if len(shared) > 1:
                row = bootstrap_difference([left[key] for key in shared], [right[key] for key in shared])
                found.append({"models": [a, b], "temperature": float(degree), **row})
    return found


def format_table(table: Mapping[str, Any]) -> str:
    """`win_rates`' result as lines to read, in percent."""
    lines = []
    for model, degrees in table["win_rates"].items():
        for degree, cell in degrees.items():
            counts = f"wins {cell['wins']}, losses {cell['losses']}, ties {cell['ties']}"
            if cell["failed"]:
                counts += f", failed {cell['failed']}"
            lines.append(
                f"{model}, temperature {degree}: {counts}, win-rate {_percent(cell['win_rate'])} ({_intervals(cell)}); "
                f"length-controlled {_controlled(cell['length_controlled'])}; "
                f"longer than gold {_percent(cell['longer_than_gold'])}"
            )
    for row in table["comparisons"]:
        lines.append(
            f"{row['models'][0]} - {row['models'][1]}, temperature {row['temperature']:g}: {100 * row['difference']:+.1f} points "
            f"on {row['n']} shared items (95 %: {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        )
    if table["underpowered"]:
        lines.append(f"underpowered: fewer than {FEW_RUNS} training seeds, so the spread between seeds is hardly known")
    return "\n".join(lines)


def _intervals(cell: Mapping[str, Any]) -> str:
    """Over seeds, where there are several, and over items."""
    spreads = [(cell, f"{cell['runs']} seed{'s' * (cell['runs'] != 1)}")]
    spreads.append((cell["items"], f"{cell['items']['n']} item{'s' * (cell['items']['n'] != 1)}"))
    return "; ".join(
        f"over {what}" + ("" if low is None else f", 95 %: {100 * low:.1f} to {100 * high:.1f}")
        for what, low, high in ((what, row["low"], row["high"]) for row, what in spreads)
    )


def _controlled(cell: Mapping[str, Any]) -> str:
    """The figure, and why some or all of the fits could not be made."""
    if cell["mean"] is None:
        return f"not fitted ({cell['problem']})" if cell["problem"] else "-"
    return _percent(cell["mean"], cell) + (f" ({cell['problem']})" if cell["problem"] else "")


def _percent(value: float | None, interval: Mapping[str, Any] | None = None) -> str:
    shown = "" if value is None else f"{100 * value:.1f} %"
    if interval is not None and interval["low"] is not None:
        shown += f"{' ' * bool(shown)}(95 %: {100 * interval['low']:.1f} to {100 * interval['high']:.1f})"
    return shown or "-"
