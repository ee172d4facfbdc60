"""Figures of training runs and of the interplay of feedback, in colours that the colour-blind can tell apart and that print well. Needs matplotlib."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jpo.errors import DataError, MissingExtra

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito's
_PANELS = (
    ("loss", ("loss", "eval_loss")),
    ("reward margin", ("rewards/margins", "eval_rewards/margins")),
    ("rewards", ("rewards/chosen", "rewards/rejected")),
    ("accuracy", ("rewards/accuracies", "mean_token_accuracy")),
)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError:
        raise MissingExtra("plots need matplotlib: pip install 'jpo[plots]'") from None
    return pyplot


def read_history(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """A run's metrics.jsonl (or the directory that holds it) as a mapping of columns, None where a step lacks a key."""
    name = os.path.join(path, "metrics.jsonl") if os.path.isdir(path) else os.fspath(path)
    rows = []
    with open(name, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise DataError(f"{name}, line {number}: not valid JSON; is the run still writing?") from None
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys}


def history(
    run: Mapping[str, Sequence[Any]] | str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> Any:
    """Loss, margins, rewards and accuracies over steps: one panel each, the columns that the run has.

    run: what train() returned, or an output directory or metrics.jsonl. path: where to save (the suffix names the format).
    Returns matplotlib's Figure.
    """
    pyplot = _pyplot()
    columns = read_history(run) if isinstance(run, (str, os.PathLike)) else run
    panels = [(title, [key for key in keys if key in columns]) for title, keys in _PANELS]
    panels = [(title, keys) for title, keys in panels if keys]
    if not panels:
        raise DataError(f"history: expected columns such as loss, got {', '.join(columns) or 'none'}")
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 2.8), squeeze=False, layout="constrained"
    )
    for axis, (title, keys) in zip(axes[0], panels, strict=True):
        for colour, style, key in zip(COLOURS, ("-", "--", ":"), keys, strict=False):
            points = [(x, y) for x, y in zip(columns["step"], columns[key], strict=True) if y is not None]
            marker = "o" if len(points) < 3 else None
            axis.plot(*zip(*points, strict=True), color=colour, linestyle=style, marker=marker, label=key)
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
        if len(keys) > 1:
            axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def interplay(result: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> Any:
    """The paper's figures 2 and 3: decisive shares of equal labels, and who wins where labels differ, with intervals.

    result: what jpo.feedback.interplay.interplay returns (or `jpo interplay --json` wrote); several annotators stand side
    by side. path: where to save. Returns matplotlib's Figure; DataError where no share is known.
    """
    sources = result.get("annotators") or {"": result}
    panels = (
        ("decisive", ("chosen_chosen_decisive", "rejected_rejected_decisive", "pooled_decisive")),
        ("chosen against rejected", ("chosen_over_rejected", "rejected_over_chosen", "chosen_rejected_indecisive")),
    )
    if all(source[key]["share"] is None for source in sources.values() for _, keys in panels for key in keys):
        raise DataError("interplay: no joint verdict between labelled items, so there is nothing to draw")
    figure, axes = _pyplot().subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (title, keys) in zip(axes, panels, strict=True):
        for number, (name, source) in enumerate(sources.items()):
            shift = 0.7 * ((number + 0.5) / len(sources) - 0.5)
            for place, key in enumerate(keys):
                value = source[key]
                if value["share"] is not None:
                    colour = COLOURS[number % len(COLOURS)]
                    label = name or None if place == 0 else None
                    axis.plot([place + shift] * 2, [value["low"], value["high"]], color=colour)
                    marker = "osD^v<"[number % 6]
                    axis.plot(place + shift, value["share"], marker, color=colour, label=label)
        counts = [sum(source[key]["n"] for source in sources.values()) for key in keys]
        names = [key.replace("_decisive", "").replace("_", "\n") for key in keys]
        axis.set_xticks(range(len(keys)), [f"{name}\nn = {n}" for name, n in zip(names, counts, strict=True)])
        axis.set_ylim(0, 1)
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of joint verdicts, 95 % interval")
    if len(sources) > 1:
        axes[1].legend(frameon=False, fontsize=8)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
