"""jpo interplay: how conditional labels and joint verdicts go together."""

from __future__ import annotations

import json as json_
from typing import Annotated, Any, Optional

import typer


def _draw(result: dict[str, Any], path: str) -> None:
    from jpo.plots import COLOURS, _pyplot

    rows = [(key, value) for key, value in result.items() if isinstance(value, dict) and value.get("share") is not None]
    figure, axis = _pyplot().subplots(figsize=(6, 0.5 * len(rows) + 1), layout="constrained")
    for place, (_, value) in enumerate(rows):
        axis.plot([value["low"], value["high"]], [place, place], color=COLOURS[0])
        axis.plot(value["share"], place, "o", color=COLOURS[0])
    axis.set_yticks(range(len(rows)), [f"{key.replace('_', ' ')} (n = {value['n']})" for key, value in rows])
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of joint verdicts, 95 % interval")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def interplay(
    input: Annotated[str, typer.Option("--input", help="Joint feedback: label_0, label_1, feedback.")],
    json: Annotated[Optional[str], typer.Option("--json", help="Write the shares, unrounded, here.")] = None,  # noqa: UP045
    plot: Annotated[Optional[str], typer.Option("--plot", help="Draw the shares with their intervals here.")] = None,  # noqa: UP045
) -> None:
    """Shares of joint verdicts by the conditional labels of their items (the paper's figures 2 and 3)."""
    from jpo.data import read_records
    from jpo.feedback.interplay import interplay as measure

    result = measure(read_records(input))
    for key, value in result.items():
        if isinstance(value, dict) and "share" in value:
            shown = (
                "-"
                if value["share"] is None
                else f"{100 * value['share']:.1f} % ({100 * value['low']:.1f} to {100 * value['high']:.1f})"
            )
            typer.echo(f"{key}: {shown}, n = {value['n']}")
    typer.echo(f"verdicts: {result['verdicts']}; without verdict or labels: {result['skipped']}")
    if json:
        with open(json, "w", encoding="utf-8") as file:
            json_.dump(result, file, indent=1)
    if plot:
        _draw(result, plot)


def register(app: typer.Typer) -> None:
    """Adds `jpo interplay`."""
    app.command("interplay")(interplay)
