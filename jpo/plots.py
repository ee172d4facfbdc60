"""Figures of training runs and of the interplay of feedback, in colours that the colour-blind can tell apart and that
print well. Needs matplotlib."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jpo.disk import make_folder_of
from jpo.errors import DataError, MissingExtra

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito's
GRID = "#e2e2e6"
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

    run: what train() returned, or an output directory or metrics.jsonl. path: where to save (the suffix names the
    format). Returns matplotlib's Figure.
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
    return _saved(figure, path)


def _saved(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """The figure, written to `path` where one is given; its folder is made."""
    if path is not None:
        make_folder_of(path)
        figure.savefig(path, dpi=150)
    return figure


_EQUAL_LABELS = ("chosen_chosen_decisive", "rejected_rejected_decisive")
SHARES = (  # key of an interplay, what it says
    ("chosen_chosen_decisive", "chosen beside chosen:\none side wins"),
    ("rejected_rejected_decisive", "rejected beside rejected:\none side wins"),
    ("chosen_over_rejected", "chosen beside rejected:\nthe chosen wins"),
    ("rejected_over_chosen", "chosen beside rejected:\nthe rejected wins"),
    ("chosen_rejected_indecisive", "chosen beside rejected:\nneither wins"),
)


def interplay(result: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> Any:
    """The paper's figures 2 and 3: decisive shares of equal labels, and who wins where labels differ, with intervals.

    result: what jpo.feedback.interplay.interplay returns (or `jpo interplay --json` wrote); several annotators stand
    one below the other. path: where to save (the suffix names the format). Returns matplotlib's Figure; DataError where
    no share is known.
    """
    sources = result.get("annotators") or {"": result}
    rows = shares_known(sources)
    if not rows:
        raise DataError("interplay: no joint verdict between labelled items, so there is nothing to draw")
    height = 0.9 + len(rows) * max(0.55, 0.27 * len(sources) + 0.15)
    figure, axis = _pyplot().subplots(figsize=(7, height), layout="constrained")
    interplay_bars(axis, sources, rows)
    return _saved(figure, path)


def shares_known(sources: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The rows of SHARES that any source has."""
    return [row for row in SHARES if any(source[row[0]]["share"] is not None for source in sources.values())]


def interplay_bars(axis: Any, sources: Mapping[str, Mapping[str, Any]], rows: Sequence[tuple[str, str]]) -> None:
    """A bar for each row and source (annotator), with its interval and, at the right, share and number of verdicts. One
    source: a colour for equal labels, one for different ones; several: a colour for each."""
    thick = 0.62 / len(sources)
    for number, (name, source) in enumerate(sources.items()):
        for place, (key, _) in enumerate(rows):
            cell = source[key]
            if cell["share"] is None:
                continue
            at = place + thick * (number - (len(sources) - 1) / 2)
            colour = COLOURS[number % len(COLOURS)] if len(sources) > 1 else COLOURS[key not in _EQUAL_LABELS]
            share, low, high = (100 * cell[part] for part in ("share", "low", "high"))
            axis.barh(at, share, color=colour, height=0.9 * thick, label=name if place == 0 else None)
            reach = [[max(0.0, share - low)], [max(0.0, high - share)]]
            axis.errorbar(share, at, xerr=reach, color=axis.xaxis.label.get_color(), capsize=2, linewidth=1)
            axis.text(102, at, f"{share:.0f} %, n = {cell['n']}", va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [text for _, text in rows], fontsize=9)
    axis.set_xlim(0, 100)
    axis.invert_yaxis()
    axis.grid(axis="x", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("share of joint verdicts, % (95 % interval)")
    if len(sources) > 1:
        axis.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(sources))
