"""jpo evaluate: win-rates from a verdict cache."""

from __future__ import annotations

import itertools
import json as json_
from typing import Annotated, Optional

import typer


def evaluate(
    verdicts: Annotated[
        str, typer.Option("--verdicts", help="Verdict cache: {model: {item: model|gold|equal}} as JSON.")
    ],
    json: Annotated[Optional[str], typer.Option("--json", help="Also write unrounded figures here.")] = None,  # noqa: UP045
) -> None:
    """Print wins, losses, ties and win-rates against gold, (win + tie / 2) / total; compare models on the items they share."""
    from jpo.evaluate import bootstrap_difference, read_verdicts

    found = read_verdicts(verdicts)
    results = {model: rate.to_dict() for model, rate in found.items()}
    for model, row in results.items():
        typer.echo(
            f"{model}: wins {row['wins']}, losses {row['losses']}, ties {row['ties']}, win-rate {100 * row['win_rate']:.1f} % "
            f"(95 %: {100 * row['low']:.1f} to {100 * row['high']:.1f}), longer than gold {100 * row['longer_than_gold']:.1f} %"
        )
    comparisons = []
    for a, b in itertools.combinations(found, 2):
        shared = sorted(found[a].scores.keys() & found[b].scores.keys())
        if len(shared) > 1:
            row = bootstrap_difference(
                [found[a].scores[key] for key in shared], [found[b].scores[key] for key in shared]
            )
            comparisons.append({"models": [a, b], **row})
            typer.echo(
                f"{a} - {b}: {100 * row['difference']:+.1f} points on {row['n']} shared items "
                f"(95 %: {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
            )
    if json:
        with open(json, "w", encoding="utf-8") as file:
            json_.dump({"win_rates": results, "comparisons": comparisons}, file, indent=1)


def register(app: typer.Typer) -> None:
    """Adds `jpo evaluate`."""
    app.command("evaluate")(evaluate)
