"""The report's figures: Okabe and Ito's colours, markers that differ in shape, readable on a phone, in the dark and in
print.

Each is a Drawing: SVG for the report, whose ink and grid take the page's colours, PNG and PDF for papers, a text for
those who cannot see it. Knows the numbers of results.json; never files of stages. Drawn on matplotlib's Figure
directly, so that no display is needed.
"""

from __future__ import annotations

import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jpo import plots
from jpo.plots import COLOURS, GRID
from jpo.study.methods import METHODS

FORMATS = ("png", "pdf")
NAMES = ("overview", "win_rates", "interplay", "scaling", "mixing")
_INK = "#1b1b1f"  # replaced by the page's colour in SVG
_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDTH = 6.2  # inches; on a phone it shrinks to 3.6 and its text of 11 points stays readable


@dataclass(frozen=True)
class Drawing:
    """A figure and what it says in words."""

    name: str
    figure: Any
    alt: str

    def svg(self) -> str:
        """SVG without an XML head, the same bytes for the same numbers."""
        import matplotlib

        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": f"jpo {self.name}", "svg.fonttype": "none"}):
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawn = text.getvalue()[text.getvalue().index("<svg") :]
        drawn = drawn.replace(_INK, "currentColor").replace(GRID, f"var(--grid, {GRID})")
        return f'<svg role="img" aria-label="{html.escape(self.alt)}"{drawn[len("<svg") :]}'

    def _repr_svg_(self) -> str:
        return self.svg()

    def save(self, folder: str) -> None:
        """NAME.png and NAME.pdf in the folder."""
        os.makedirs(folder, exist_ok=True)
        for kind in FORMATS:
            made = {"Software": None} if kind == "png" else {"CreationDate": None, "Creator": None, "Producer": None}
            self.figure.savefig(os.path.join(folder, f"{self.name}.{kind}"), dpi=200, metadata=made)


def drawings(results: Mapping[str, Any]) -> dict[str, Drawing]:
    """name (of NAMES) -> Drawing of everything that was run."""
    import matplotlib

    colours = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    fonts = {"font.family": "sans-serif", "font.size": 11, "legend.fontsize": 10, "axes.labelsize": 10}
    with matplotlib.rc_context({**colours, **fonts}):
        made: list[Drawing | None] = [_overview(results), _win_rates(results), _interplay(results["interplay"])]
        made += [_scaling(results["scaling"]), _mixing(results["mixing"])]
        drawn = {drawing.name: drawing for drawing in made if drawing}
        for drawing in drawn.values():  # laid out once: each further time would move things by a hair
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
    return drawn


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="both", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def _percent(value: float | None) -> float:
    """Not a number, which is not drawn, where every verdict failed."""
    return math.nan if value is None else 100 * value


def _errors(points: Sequence[Mapping[str, Any]], middle: str) -> list[list[float]]:
    """Distances to low and high in points of percent; none where there is no interval."""
    known = [p["low"] is not None and p[middle] is not None for p in points]
    lows = [max(0.0, 100 * (p[middle] - p["low"])) if there else 0.0 for p, there in zip(points, known, strict=True)]
    highs = [max(0.0, 100 * (p["high"] - p[middle])) if there else 0.0 for p, there in zip(points, known, strict=True)]
    return [lows, highs]


def _said(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _overview(results: Mapping[str, Any]) -> Drawing:
    """Each method's win-rate over all temperatures as a bar, its training seeds as dots, the SFT policy as a line."""
    methods = list(results["settings"]["methods"])
    cells = [results["pooled"][method] for method in methods]
    figure, axis = _figure(0.42 * len(methods) + 0.9)
    axis.grid(axis="y", visible=False)
    for row, (method, cell) in enumerate(zip(methods, cells, strict=True)):
        colour = COLOURS[1] if method.startswith("jpo") else "#8a8a93" if method == "sft" else COLOURS[0]
        axis.barh(row, _percent(cell["mean"]), color=colour, height=0.62)
        axis.errorbar(_percent(cell["mean"]), row, xerr=_errors([cell], "mean"), color=_INK, capsize=3, linewidth=1.2)
        shown = "–" if cell["mean"] is None else f"{100 * cell['mean']:.1f}"
        axis.text(101, row, shown, va="center", fontsize=11)
    if "sft" in methods and results["pooled"]["sft"]["mean"] is not None:
        axis.axvline(100 * results["pooled"]["sft"]["mean"], color=_INK, linestyle=(0, (4, 3)), linewidth=1)
    axis.set_yticks(range(len(methods)), [METHODS[method].label for method in methods])
    axis.set_xlim(0, 100)
    axis.invert_yaxis()
    axis.set_xlabel("win-rate against gold over all temperatures, % (95 % interval)")
    listed = ", ".join(f"{METHODS[m].label} {_said(c['mean'])}" for m, c in zip(methods, cells, strict=True))
    return Drawing("overview", figure, f"Bars: win-rate against gold over all temperatures. {listed}.")


def _win_rates(results: Mapping[str, Any]) -> Drawing:
    """Win-rates by method, one mark a temperature, with intervals over training seeds."""
    table = {method: results["table"][method] for method in results["settings"]["methods"]}
    degrees = list(next(iter(table.values())))
    figure, axis = _figure(0.55 * len(table) + 1.3)
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
    _legend(axis, len(degrees))
    return Drawing("win_rates", figure, "Win-rate of each method at each temperature; the table below has the numbers.")


def _legend(axis: Any, columns: int) -> None:
    """Above the axes, so that the plot keeps its width."""
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(columns, 3))


def _interplay(interplay: Mapping[str, Any]) -> Drawing:
    """The shares of joint verdicts by the conditional labels of their items (the paper's figures 2 and 3)."""
    rows = plots.shares_known({"": interplay})
    figure, axis = _figure(0.62 * max(1, len(rows)) + 0.8)
    axis.grid(axis="y", visible=False)
    plots.interplay_bars(axis, {"": interplay}, rows)
    listed = "; ".join(f"{text} {_said(interplay[key]['share'])}" for key, text in rows).replace("\n", " ")
    return Drawing("interplay", figure, f"Bars: shares of joint verdicts. {listed or 'None between labelled items'}.")


def _lines(curves: Mapping[str, Mapping[Any, Mapping[str, Any]]], xlabel: str) -> Any:
    figure, axis = _figure(3.6)
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
    axis.set_xlabel(f"{xlabel} (95 % interval over training seeds)")
    axis.set_ylabel("win-rate, %, all temperatures")
    _legend(axis, len(curves))
    return figure


def _points_said(curves: Mapping[str, Mapping[Any, Mapping[str, Any]]], unit: str) -> str:
    parts = []
    for name, points in curves.items():
        parts.append(f"{name}: " + ", ".join(f"{_said(cell['mean'])} at {x:g} {unit}" for x, cell in points.items()))
    return "; ".join(parts)


def _scaling(scaling: Mapping[str, Any]) -> Drawing | None:
    """Win-rate over the number of preference pairs, a line a method."""
    if not scaling:
        return None
    curves = {
        METHODS[method].label: {point["pairs"]: point for point in points.values()}
        for method, points in scaling.items()
    }
    said = _points_said(curves, "pairs")
    return Drawing("scaling", _lines(curves, "preference pairs"), f"Lines: win-rate over preference pairs. {said}.")


def _mixing(mixing: Mapping[str, Any]) -> Drawing | None:
    """Win-rate over the share of joint pairs, at equal pairs and at equal epochs."""
    if not mixing:
        return None
    names = {"equal_pairs": "equal pairs", "equal_epochs": "equal epochs"}
    curves = {
        names[key]: {100 * float(share): point for share, point in sorted(points.items(), key=lambda p: float(p[0]))}
        for key, points in mixing.items()
        if points
    }
    said = _points_said(curves, "% joint pairs")
    figure = _lines(curves, "joint pairs among all pairs, %")
    return Drawing("mixing", figure, f"Lines: win-rate over the share of joint pairs. {said}.")
