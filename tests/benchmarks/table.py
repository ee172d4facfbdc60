"""The report as text: the machine, one table of figures a case, one table of goals. Markdown, so that it can be
pasted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent where it is readable."""
    if value is None:
        return ""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def _markdown(head: list[str], body: Iterable[list[str]]) -> list[str]:
    cells = [head, *body]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def machine_lines(machine: dict[str, Any], versions: dict[str, str]) -> list[str]:
    """What the figures depend on."""
    info, allocators = machine["jpo"], machine["allocators"]
    lines = [
        f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['platform']}",
        f"jpo: {info['isa']} kernels, {info['threads']} threads, OpenBLAS kernels {info['blas_kernel']}",
        f"allocators: glibc {allocators['glibc']}; tcmalloc {allocators['tcmalloc'] or 'not installed'}",
        "peers: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if machine["cleared"]:
        lines.append(f"not passed on to the contestants: {', '.join(machine['cleared'])}")
    return lines


def case_lines(result: dict[str, Any]) -> list[str]:
    """One case: figure, ratio, memory, share of the limit."""
    head = [f"{result['name']}, {result['unit']}", "figure", "jpo is x times", "peak GB", "% of limit", "turns"]
    body, notes = [], []
    for row in result["rows"]:
        share = f"{100 * row['share']:.0f}" if row.get("share") is not None else ""
        figure, ratio, peak = (number(row.get(name)) for name in ("figure", "ratio", "peak_gb"))
        body.append([row["label"], figure or "left out", ratio, peak, share, str(row["n"])])
        if row["note"]:
            notes.append(f"- {row['label']}: {row['note']}")
    lines = [f"### {result['title']}", ""]
    if result["yardstick_text"]:
        lines += [f"{result['yardstick']}: {result['yardstick_text']}", ""]
    return [*lines, *_markdown(head, body), "", *notes]


def goal_lines(results: list[dict[str, Any]]) -> list[str]:
    """Every goal, what was measured, the verdict."""
    body = [
        [result["name"], goal["of"], goal["goal"], number(goal["value"]), goal["verdict"]]
        for result in results
        for goal in result["goals"]
    ]
    counts = [sum(row[-1] == verdict for row in body) for verdict in ("met", "not met", "not measured")]
    lines = _markdown(["case", "of", "goal", "measured", "verdict"], body) if body else []
    return [*lines, "", f"{counts[0]} met, {counts[1]} not met, {counts[2]} not measured"]
