"""The report as a picture: how many times as fast jpo is as each peer, and the growth curves."""

from __future__ import annotations

from typing import Any


def draw(report: dict[str, Any], path: str) -> None:
    """Writes the plot; the file's ending chooses the format."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{case['name']}: {row['label']}", row["ratio"])
        for case in report["cases"]
        for row in case["rows"]
        if row.get("ratio") and not row["label"].startswith("jpo")
    ]
    growth = [case for case in report["cases"] if case["name"].startswith("growth-")]
    if not bars and not growth:
        raise SystemExit("nothing to plot: no peer and no growth curve was measured")
    bars_height, rows = 0.16 * len(bars) + 0.8 if bars else 0, (len(growth) + 1) // 2
    heights = ([bars_height] if bars else []) + [2.3] * rows
    figure = plt.figure(figsize=(9, sum(heights) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    if bars:
        _ratios(figure.add_subplot(grid[0, :]), bars)
    for place, case in enumerate(growth):
        _growth(figure.add_subplot(grid[len(heights) - rows + place // 2, place % 2]), case)
    machine = report["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['jpo']['isa']}", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _ratios(axis: Any, bars: list[tuple[str, float]]) -> None:
    places = range(len(bars))
    axis.barh(places, [ratio for _, ratio in bars], color="#4878a8")
    axis.set_yticks(places, [name for name, _ in bars], fontsize=6)
    for place, (_, ratio) in zip(places, bars):
        axis.text(ratio, place, f" {ratio:.2g}", va="center", fontsize=6)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    for formatter in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=6)
    axis.invert_yaxis()
    axis.set_xlabel("jpo is so many times as fast")


def _growth(axis: Any, case: dict[str, Any]) -> None:
    points = [(float(row["label"].rpartition(", ")[2]), row) for row in case["rows"] if "figure" in row]
    sizes = [size for size, _ in points]
    axis.loglog(sizes, [row["figure"] for _, row in points], "o-", color="#4878a8")
    axis.set_xlabel(case["title"].removeprefix("growth with "))
    axis.set_ylabel("seconds", color="#4878a8")
    memory = axis.twinx()
    memory.loglog(sizes, [row["peak_gb"] for _, row in points], "s--", color="#b05030")
    memory.set_ylabel("peak GB", color="#b05030")
    for one in (axis, memory):
        for formatter in (one.yaxis.set_major_formatter, one.yaxis.set_minor_formatter):
            formatter("{x:.3g}")
        low, high = one.get_ylim()
        if high < 3 * low:  # hardly any growth: not to be drawn as if there were
            one.set_ylim(low / 2, high * 2)
        one.tick_params(axis="y", which="both", labelsize=7)
    axis.minorticks_off()
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes], fontsize=7)
