"""`jpo doctor`: what this machine offers and what jpo made of it."""

from __future__ import annotations

import json as json_

import typer


def doctor(
    json: bool = typer.Option(False, "--json", help="Print one JSON object instead of text."),
    measure: bool = typer.Option(True, help="Measure GF/s of each compute type (about a second)."),
) -> None:
    """Print version, BLAS, instruction set, threads, memory, speed and the extras present."""
    from jpo import doctor as machine

    if json:
        typer.echo(json_.dumps(machine.report(measure), indent=2))
    else:
        machine.main(measure=measure)


def register(app: typer.Typer) -> None:
    """Adds `jpo doctor` to the command line."""
    app.command("doctor")(doctor)
