"""jpo join: the shards of a stage as one file."""

from __future__ import annotations

from typing import Annotated

import typer


def join(
    output: Annotated[str, typer.Option("--output", help="The file whose shards OUTPUT-00000-of-0000N lie beside it.")],
    shards: Annotated[
        int | None, typer.Option("--shards", help="How many there must be. (default: as their names say)")
    ] = None,
    journal: Annotated[
        str | None, typer.Option("--journal", help="The verdicts' journal, where the shards had --journal.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the shards where they are.")] = False,
) -> None:
    """Put the shards together that jpo generate, score, feedback or evaluate left with --shard i/n.

    The result is what one process would have written. A missing shard is named, and nothing is written.

    Example: jpo join --output generations.jsonl --shards 8
    """
    from jpo.parallel.shards import join as join_shards

    count = join_shards(output, shards, keep, journal)
    typer.echo(f"{count} shards joined into {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo join`."""
    app.command("join")(join)
