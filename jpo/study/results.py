"""The numbers of a study, gathered from its files: results.json. Knows files of stages; never runs or draws
anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jpo.data.readers import iter_records, read_records
from jpo.evaluate.alpaca_eval import read_annotations
from jpo.evaluate.alpaca_regression import read_difficulty
from jpo.evaluate.statistics import bootstrap_difference, share_interval, t_interval
from jpo.evaluate.winrate import win_rates
from jpo.study import world
from jpo.study.config import WORLD, StudyConfig
from jpo.study.methods import METHODS
from jpo.study.stages import Run, Stages, read_json, verdict_rows

Rows = Sequence[Mapping[str, Any]]
# (method, the method that it is held to, what would be said of the two, whether the paper's abstract says it)
CLAIMS = (
    ("jpo_union", "dpo", "JPO on both kinds of feedback improves on DPO on conditional feedback alone", True),
    ("dpo", "sft", "DPO on conditional feedback improves on the SFT policy", False),
    ("jpo_joint", "sft", "JPO on joint feedback alone improves on the SFT policy", False),
    ("jpo_union", "jpo_joint", "JPO on both kinds of feedback improves on JPO on joint feedback alone", False),
    ("jpo_joint", "jpo_masked", "scoring the instruction too (JPO) improves on masking it in the same pairs", False),
    ("jpo_union", "kto", "JPO on both kinds of feedback improves on KTO", False),
)

MIXED = ("dpo", "jpo_union", "jpo_joint")  # of the mixing study at equal epochs: joint pairs none, some, all


def gather(stages: Stages, runs: Sequence[Run], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Everything that the report shows; win_rates[method][training seed][temperature] first.

    win_rates are (win + tie / 2) / total; `table` holds intervals over training seeds and over items; `comparisons`
    bootstrap paired items; `pooled` compares over all temperatures at once.
    """
    config = stages.config
    main = [run for run in runs if run.main]
    rows = verdict_rows(stages, main)
    found = win_rates(rows)
    return {
        "win_rates": _by_seed(found["win_rates"]),
        "underpowered": len(config.training_seeds) < 3,
        "table": found["win_rates"],
        "pooled": {method: _pooled(rows, method) for method in config.methods},
        "above_sft": _above_sft(rows, config.methods),
        "comparisons": found["comparisons"],
        "claims": _claims(rows, config.methods),
        "alpaca_eval": _alpaca(stages, main) if config.alpaca_eval else None,
        "unparsed_share": _share(map(_unparsed(config), rows)),
        "unparsed": _unparsed_table(rows, config),
        "interplay": read_json(stages.path("interplay.json")),
        "feedback": {kind: _verdicts(stages, kind) for kind in ("conditional", "joint")},
        "scaling": _scaling(stages, runs),
        "mixing": _mixing(stages, runs),
        "training": {run.name: _training(stages, run) for run in runs if run.method != "sft"},
        "sizes": _sizes(stages),
        "settings": config.to_dict(),
        "seconds": round(sum(seconds.values()), 2),
        "stage_seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def _by_seed(table: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """method -> training seed -> temperature -> win-rate."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for method, degrees in table.items():
        for degree, cell in degrees.items():
            for run, counts in cell["by_run"].items():
                seed = run.removeprefix("training seed ")
                found.setdefault(method, {}).setdefault(seed, {})[degree] = counts["win_rate"]
    return found


def _alpaca(stages: Stages, runs: Sequence[Run]) -> dict[str, Any]:
    """method -> its figures on the AlpacaEval set: means over training seeds with their intervals, and each seed's."""
    path = stages.config.alpaca_eval_difficulty
    difficulty = read_difficulty(path) if path else None
    found: dict[str, Any] = {}
    for label, group in _groups(runs).items():
        seeds = {
            str(run.seed): next(iter(read_annotations(stages.path(stages.alpaca_verdicts(run)), difficulty).values()))
            for run in group
        }
        own = [row["alpaca_eval"] for row in seeds.values()]
        rates = [row["win_rate"] for row in seeds.values() if row["win_rate"] is not None]
        fitted = [row["length_controlled_winrate"] / 100 for row in own if row["length_controlled_winrate"] is not None]
        found[label] = {
            "win_rate": share_interval(rates),
            "length_controlled": {
                **share_interval(fitted),
                "glm": own[0]["glm"],
                "problem": "; ".join(sorted({row["problem"] for row in own if row["problem"]})) or None,
            },
            "by_seed": seeds,
        }
    return found


def _score(row: Mapping[str, Any]) -> float:
    return (1.0, 0.0, 0.5)[int(row["feedback"])]


def _means(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, float]:
    """The mean score of the rows of one value of `key`."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["feedback"] is not None:
            values.setdefault(str(row[key]), []).append(_score(row))
    return {name: sum(scores) / len(scores) for name, scores in values.items()}


def _pooled(rows: Rows, model: str) -> dict[str, Any]:
    """All temperatures together: {mean, low, high, n} over training seeds, and `items` likewise over items; intervals
    of shares, within 0 and 1."""
    own = [row for row in rows if row["model"] == model]
    by_seed = _means(own, "training_seed")
    return {**share_interval(list(by_seed.values())), "items": share_interval(list(_means(own, "id").values()))}


def _difference(rows: Rows, better: str, other: str) -> dict[str, Any] | None:
    """How far `better` stands above `other` over all temperatures: {items, seeds, verdict}; None where they share no
    items.
    items: paired bootstrap over test items. seeds: Student's over training seeds. The verdict needs both to leave out
        0."""
    sides = [[row for row in rows if row["model"] == model] for model in (better, other)]
    items = [_means(side, "id") for side in sides]
    shared = sorted(items[0].keys() & items[1].keys())
    if len(shared) < 2:
        return None
    by_item = bootstrap_difference([items[0][key] for key in shared], [items[1][key] for key in shared])
    seeds = [_means(side, "training_seed") for side in sides]
    by_seed = t_interval([seeds[0][key] - seeds[1][key] for key in sorted(seeds[0].keys() & seeds[1].keys())])
    lows, highs = (by_item["low"], by_seed["low"]), (by_item["high"], by_seed["high"])
    verdict = "undecided"
    if None not in lows and len(seeds[0]) > 2:
        verdict = "agrees" if min(lows) > 0 else "disagrees" if max(highs) < 0 else verdict
    return {"verdict": verdict, "items": by_item, "seeds": by_seed}


def _above_sft(rows: Rows, methods: Sequence[str]) -> dict[str, Any]:
    """method -> its difference to the SFT policy, where both were run."""
    if "sft" not in methods:
        return {}
    found = {method: _difference(rows, method, "sft") for method in methods if method != "sft"}
    return {method: cell for method, cell in found.items() if cell}


def _claims(rows: Rows, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Each claim's difference over all temperatures, with both intervals, and what they say of it."""
    found = []
    for better, other, text, paper in CLAIMS:
        cell = _difference(rows, better, other) if better in methods and other in methods else None
        if cell:
            found.append({"methods": [better, other], "claim": text, "paper": paper, **cell})
    return found


# --- what could not be parsed, and what the judge said ------------------------------------------------------------


def _unparsed(config: StudyConfig) -> Any:
    """Whether a judged sample could not be parsed: the world's judge reads outputs; of other judges, failed
    verdicts."""
    if config.judge == WORLD:
        return lambda row: world.parse_response(row["instruction"], row["response_0"]) is None
    return lambda row: row["feedback"] is None


def _share(flags: Iterable[bool]) -> float | None:
    listed = list(flags)
    return sum(listed) / len(listed) if listed else None


def _unparsed_table(rows: Rows, config: StudyConfig) -> dict[str, dict[str, float | None]]:
    test = _unparsed(config)
    cells: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        cells.setdefault((row["model"], f"{row['temperature']:g}"), []).append(test(row))
    found: dict[str, dict[str, float | None]] = {}
    for (model, degree), flags in cells.items():
        found.setdefault(model, {})[degree] = _share(flags)
    return found


def _verdicts(stages: Stages, kind: str) -> dict[str, int]:
    counts = Counter(str(row["feedback"]) for row in read_records(stages.path("feedback", f"{kind}.jsonl")))
    return {name: counts.get(key, 0) for name, key in (("0", "0"), ("1", "1"), ("2", "2"), ("failed", "None"))}


def _sizes(stages: Stages) -> dict[str, int]:
    names = {"sft": "data", "instructions": "data", "test": "data", "conditional": "pairs", "joint": "pairs"}
    return {name: sum(1 for _ in iter_records(stages.path(folder, f"{name}.jsonl"))) for name, folder in names.items()}


# --- curves -------------------------------------------------------------------------------------------------------


def _training(stages: Stages, run: Run) -> dict[str, Any]:
    """A run's pairs, steps, and its last steps' loss, margin and accuracy (means of the last tenth)."""
    rows = read_records(stages.path("runs", run.name, "metrics.jsonl"))
    last = rows[-max(1, len(rows) // 10) :]
    keys = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    means = {name: math.fsum(row[key] for row in last) / len(last) for name, key in keys.items()}
    pairs = read_json(stages.path("runs", run.name, "study.json"))["pairs"]
    return {"pairs": pairs, "steps": len(rows), "seconds": round(sum(row["step_seconds"] for row in rows), 2), **means}


def _point(stages: Stages, runs: Sequence[Run]) -> dict[str, Any]:
    first = _training(stages, runs[0])
    pooled = _pooled(verdict_rows(stages, runs), runs[0].label)
    return {"pairs": first["pairs"], "steps": first["steps"], **pooled}


def _groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.label, []).append(run)
    return found


def _scaling(stages: Stages, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """method -> share of the feedback -> its point, where smaller amounts were run."""
    wanted = {run.method for run in runs if run.amount < 1}
    found: dict[str, dict[str, Any]] = {}
    for group in _groups(run for run in runs if run.method in wanted and (run.main or run.amount < 1)).values():
        found.setdefault(group[0].method, {})[f"{group[0].amount:g}"] = _point(stages, group)
    return {method: dict(sorted(points.items(), key=lambda pair: float(pair[0]))) for method, points in found.items()}


def _mixing(stages: Stages, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """equal_pairs: share of joint pairs -> point. equal_epochs: the whole sets and their union, as many epochs each."""
    groups = _groups(runs)
    shares = {f"{group[0].share:g}": group for group in groups.values() if group[0].share is not None}
    if not shares:
        return {}
    epochs: dict[str, Any] = {}
    for method in MIXED:
        group = groups.get(f"{method}@epochs") or groups.get(method)
        if group:
            point = _point(stages, group)
            joint = {"dpo": 0, "jpo_joint": point["pairs"]}.get(method)
            if joint is None:
                joint = len(read_records(stages.path("pairs", "joint.jsonl")))
            epochs[f"{joint / point['pairs']:.4g}"] = {**point, "method": METHODS[method].label}
    ordered = sorted(shares.items(), key=lambda pair: float(pair[0]))
    return {"equal_pairs": {share: _point(stages, group) for share, group in ordered}, "equal_epochs": epochs}
