"""Figures of a training run, in colours that the colour-blind can tell apart and that print well. Needs matplotlib."""

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
