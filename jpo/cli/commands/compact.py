"""jpo compact: verdict journals as one Parquet file."""

from __future__ import annotations

from typing import Annotated

import typer


def compact(
    journal: Annotated[
        list[str], typer.Option("--journal", help="SQLite journal of verdicts, a shard's or the whole's; may repeat.")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", help="The .parquet file. (default: beside the only --journal, under its name)"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the journals where they are.")] = False,
) -> None:
    """Put verdict journals into one Parquet file: for more verdicts than one SQLite file should hold.

    Shards (--shard i/n) keep a journal each. X.parquet beside X.sqlite, the journal of a run, is asked before the judge
    is: what was compacted is not asked again, and new verdicts go into X.sqlite, which can be compacted in turn. The
    journals are removed once the file is on disk; a kill loses nothing.

    Example: jpo compact --journal feedback.jsonl.journal.sqlite
    """
    from jpo.errors import JpoError
    from jpo.feedback.compact import compact as compact_journals
    from jpo.feedback.compacted import compacted_name

    if output is None and len(journal) > 1:
        raise JpoError(f"--output is missing: the .parquet file for {len(journal)} journals")
    path = output or compacted_name(journal[0])
    typer.echo(f"{compact_journals(path, journal, keep=keep)} verdicts in {path}")


def register(app: typer.Typer) -> None:
    """Adds `jpo compact`."""
    app.command("compact")(compact)
