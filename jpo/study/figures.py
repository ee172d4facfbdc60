"""The report's figures as SVG text: Okabe and Ito's colours, markers that differ in shape, readable in print.

Knows the numbers of results.json; never files. Drawn on matplotlib's Figure directly, so that no display is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jpo.plots import COLOURS
from jpo.study.methods import METHODS

_MARKERS = ("o", "s", "^", "D", "v", "P")
_SHARES = (
    ("chosen_chosen_decisive", "chosen beside chosen:\none side wins"),
    ("rejected_rejected_decisive", "rejected beside rejected:\none side wins"),
    ("chosen_over_rejected", "chosen beside rejected:\nthe chosen wins"),
    ("rejected_over_chosen", "chosen beside rejected:\nthe rejected wins"),
    ("chosen_rejected_indecisive", "chosen beside rejected:\nneither wins"),
)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="both", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def _svg(figure: Any) -> str:
    """SVG without an XML head, the same bytes for the same numbers."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "jpo", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _percent(value: float | None) -> float:
    """Not a number, which is not drawn, where every verdict failed."""
    return math.nan if value is None else 100 * value


def _errors(points: Sequence[Mapping[str, Any]], middle: str) -> list[list[float]]:
    """Distances to low and high in points of percent; none where there is no interval."""
    known = [p["low"] is not None and p[middle] is not None for p in points]
    lows = [max(0.0, 100 * (p[middle] - p["low"])) if there else 0.0 for p, there in zip(points, known, strict=True)]
    highs = [max(0.0, 100 * (p["high"] - p[middle])) if there else 0.0 for p, there in zip(points, known, strict=True)]
    return [lows, highs]


def win_rate_figure(results: Mapping[str, Any]) -> str:
    """Win-rates by method, one mark a temperature, with intervals over training seeds."""
    table = {method: results["table"][method] for method in results["settings"]["methods"]}
    degrees = list(next(iter(table.values())))
    figure, axis = _figure(7.6, 0.55 * len(table) + 1.1)
    for place, degree in enumerate(degrees):
        cells = [cells[degree] for cells in table.values()]
        rows = [row + 0.22 * (place - (len(degrees) - 1) / 2) for row in range(len(table))]
        axis.errorbar(
            [_percent(cell["win_rate"]) for cell in cells],
            rows,
            xerr=_errors(cells, "win_rate"),
            fmt=_MARKERS[place % len(_MARKERS)],
            color=COLOURS[place % len(COLOURS)],
            capsize=2,
            markersize=5,
            label=f"T = {degree}",
        )
    axis.set_yticks(range(len(table)), [METHODS[method].label for method in table])
    axis.invert_yaxis()
    axis.set_xlabel("win-rate against gold, % (95 % interval over training seeds)")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def interplay_figure(interplay: Mapping[str, Any]) -> str:
    """The shares of joint verdicts by the conditional labels of their items (the paper's figures 2 and 3)."""
    rows = [(text, interplay[key]) for key, text in _SHARES if interplay[key]["share"] is not None]
    figure, axis = _figure(7.6, 0.6 * len(rows) + 0.8)
    for place, (_, cell) in enumerate(rows):
        colour = COLOURS[0] if place < 2 else COLOURS[1]
        axis.barh(place, 100 * cell["share"], color=colour, height=0.6)
        axis.errorbar(100 * cell["share"], place, xerr=_errors([cell], "share"), color="black", capsize=3)
        axis.text(101, place, f"{100 * cell['share']:.0f} %, n = {cell['n']}", va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [text for text, _ in rows], fontsize=9)
    axis.set_xlim(0, 100)
    axis.invert_yaxis()
    axis.set_xlabel("share of joint verdicts, % (95 % interval)")
    return _svg(figure)


def _lines(curves: Mapping[str, Mapping[Any, Mapping[str, Any]]], xlabel: str) -> str:
    figure, axis = _figure(7.0, 3.2)
    for place, (name, points) in enumerate(curves.items()):
        axis.errorbar(
            list(points),
            [_percent(point["mean"]) for point in points.values()],
            yerr=_errors(list(points.values()), "mean"),
            fmt=_MARKERS[place % len(_MARKERS)] + ("-", "--", ":", "-.")[place % 4],
            color=COLOURS[place % len(COLOURS)],
            capsize=3,
            label=name,
        )
    axis.set_xlabel(xlabel)
    axis.set_ylabel("win-rate, %, all temperatures")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def scaling_figure(scaling: Mapping[str, Any]) -> str:
    """Win-rate over the number of preference pairs, a line a method."""
    curves = {
        METHODS[method].label: {point["pairs"]: point for point in points.values()}
        for method, points in scaling.items()
    }
    return _lines(curves, "preference pairs (95 % interval over training seeds)")


def mixing_figure(mixing: Mapping[str, Any]) -> str:
    """Win-rate over the share of joint pairs, at equal pairs and at equal epochs."""
    names = {"equal_pairs": "equal pairs", "equal_epochs": "equal epochs"}
    curves = {
        names[key]: {100 * float(share): point for share, point in sorted(points.items(), key=lambda p: float(p[0]))}
        for key, points in mixing.items()
        if points
    }
    return _lines(curves, "joint pairs among all pairs, % (95 % interval over training seeds)")
