"""jpo demo: the whole method on the embedded world."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def show(results: dict[str, Any], folder: str) -> None:
    """The win-rates and where the rest stands."""
    from jpo.study.methods import METHODS

    degrees = list(next(iter(results["table"].values())))
    typer.echo(f"{'win-rate against gold, %':<26}" + "".join(f"{'T = ' + degree:>22}" for degree in degrees))
    for method, cells in results["table"].items():
        row = f"{METHODS[method].label:<26}"
        for degree in degrees:
            cell = cells[degree]
            between = "" if cell["low"] is None else f" ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"
            rate = "-" if cell["win_rate"] is None else f"{100 * cell['win_rate']:.1f}"
            row += f"{rate}{between}".rjust(22)
        typer.echo(row)
    if results["underpowered"]:
        typer.echo("underpowered: fewer than 3 training seeds, so the spread between seeds is hardly known")
    typer.echo(
        f"unparsed {100 * results['unparsed_share']:.2f} %; {results['seconds']:.0f} s; open {folder}/report.html"
    )


def demo(
    output: Annotated[str, typer.Option("--output", help="Directory of report.html and results.json.")],
    seed: Annotated[int | None, typer.Option("--seed", help="Equal seeds give equal numbers. [default: 0]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the stages and what is done; write nothing.")
    ] = False,
) -> None:
    """Run the whole method on an embedded world in about three minutes, with no download.

    A small decoder trained from scratch, feedback by an exact judge, DPO, JPO and their relatives, win-rates, a report.
    Interrupted (also by kill -9), the same command goes on where it was. jpo study --preset world runs more of it.

    Example: jpo demo --output demo
    """
    from jpo.parallel.launch import alone
    from jpo.study import Study, load_config, run_study

    alone("jpo demo")
    config = load_config(preset="demo", output=output, seed=seed)
    if dry_run:
        typer.echo(Study(config).describe())
        return
    show(run_study(config), output)


def register(app: typer.Typer) -> None:
    """Adds `jpo demo`."""
    app.command("demo")(demo)
