"""report.html: one file that needs no network, from results.json and some of the study's texts.

Knows numbers and texts; its words stand in report.html.j2 beside it.
"""

from __future__ import annotations

import importlib.resources
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from jpo import doctor
from jpo.data.readers import read_records
from jpo.disk import write_text
from jpo.study import figures, world
from jpo.study.config import WORLD
from jpo.study.methods import METHODS
from jpo.study.stages import Run, Stages

_EXAMPLES = 5
_SHOWN = 3  # of them beside the first picture
_LEARNED = ("dpo", "jpo_joint", "jpo_union")  # of the first sentences


def write_report(stages: Stages, runs: Sequence[Run], results: Mapping[str, Any], path: str) -> None:
    """Render the report to `path`, as a whole or not at all, and its figures as PNG and PDF into figures/ beside it."""
    import jinja2
    from markupsafe import Markup

    drawn = figures.drawings(results)
    for drawing in drawn.values():
        drawing.save(os.path.join(os.path.dirname(path) or ".", "figures"))
    source = importlib.resources.files("jpo.study").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(percent=_percent, points=_points, interval=_interval, p=_p)
    text = environment.from_string(source).render(
        r=results,
        c=results["settings"],
        methods=METHODS,
        told_epochs=stages.config.train.get("epochs") is not None,
        is_world=stages.config.model == WORLD,
        degrees=list(next(iter(results["table"].values()))),
        averages={method: _averages(results, method) for method in results["settings"]["methods"]},
        drawn={name: Markup(drawn[name].svg()) if name in drawn else None for name in figures.NAMES},
        examples=_examples(stages, runs),
        shown=_SHOWN,
        learned=[method for method in _LEARNED if method in results["above_sft"]],
        example_degree=f"{middle(stages.config.temperatures):g}",
        versus=_versus(results),
        machine=_machine(),
        tie=world.TIE,
        families=world.FAMILIES,
        careful=world.CAREFUL,
    )
    write_text(path, text)


def _averages(results: Mapping[str, Any], method: str) -> dict[str, float | None]:
    """Means over the temperatures of what the table shows once."""
    cells = results["table"][method].values()
    columns = {
        "length_controlled": [cell["length_controlled"]["mean"] for cell in cells],
        "longer": [cell["longer_than_gold"] for cell in cells],
        "unparsed": list(results["unparsed"][method].values()),
    }
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}


def _versus(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[{baseline, rows: [(method, temperature -> comparison)]}]: every method against the SFT policy, and against
    DPO."""
    found = []
    for baseline in ("sft", "dpo"):
        rows: dict[str, dict[str, Any]] = {}
        for row in results["comparisons"]:
            if baseline in row["models"]:
                other = next(model for model in row["models"] if model != baseline)
                sign = -1 if row["models"][0] == baseline else 1
                low, high = sorted((sign * row["low"], sign * row["high"]))
                cell = {"difference": sign * row["difference"], "low": low, "high": high, "p": row["p"]}
                rows.setdefault(other, {})[f"{row['temperature']:g}"] = cell
        if rows:
            found.append({"baseline": baseline, "rows": rows})
    return found


def _examples(stages: Stages, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The first test items: gold, and what the SFT policy and one run of each of two methods wrote at the middle
    temperature: {instruction, texts: [{who, text, verdict, quality}]}; quality where the world's judge reads it."""
    main = [run for run in runs if run.main]
    shown = [run for run in main if run.method in ("sft", "dpo", "jpo_union") and run.seed == main[0].seed]
    found: dict[str, dict[str, Any]] = {}
    for run in shown:
        rows = read_records(stages.path("verdicts", f"{run.name}.jsonl"))
        for row in [row for row in rows if row["temperature"] == middle(stages.config.temperatures)][:_EXAMPLES]:
            example = found.setdefault(str(row["id"]), {"instruction": row["instruction"], "gold": row["response_1"]})
            verdict = {0: "wins", 1: "loses", 2: "equal"}.get(row["feedback"], "failed")
            who = METHODS[run.method].label
            example.setdefault("texts", []).append({"who": who, "text": row["response_0"], "verdict": verdict})
    for example in found.values():
        example["texts"].append({"who": "gold", "text": example["gold"], "verdict": ""})
        for text in example["texts"]:
            known = stages.config.model == WORLD
            text["quality"] = world.quality(example["instruction"], text["text"]) if known else None
    return list(found.values())


def middle(temperatures: Sequence[float]) -> float:
    """The temperature of the examples."""
    return sorted(temperatures)[len(temperatures) // 2]


def _machine() -> dict[str, Any]:
    import numpy

    from jpo import _core

    info = dict(_core.system_info())
    versions = f"jpo {doctor.version()}, Python {platform.python_version()}, NumPy {numpy.__version__}"
    return {"versions": versions, "platform": platform.platform(), "isa": info["isa"], "threads": info["threads"]}


# --- numbers as text ----------------------------------------------------------------------------------------------


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _points(value: float | None) -> str:
    if value is None:
        return "–"
    return "0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}".replace("-", "−")


def _interval(cell: Mapping[str, Any], signed: bool = False) -> str:
    if cell["low"] is None:
        return "–"
    form = _points if signed else _percent
    return f"{form(cell['low'])} to {form(cell['high'])}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
