"""`jpo pairs`: weak joint pairs, joint candidates to judge, and preference pairs out of verdicts."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def pairs(
    input: Annotated[list[str], typer.Option("--input", help="Records to read (.jsonl, .json, .parquet); may repeat.")],
    output: Annotated[str, typer.Option("--output", help="The .jsonl file to write; replaced as a whole.")],
    weak: Annotated[
        bool,
        typer.Option("--weak", help="Joint pairs: chosen responses over rejected ones of other instructions."),
    ] = False,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Joint candidates of two items with different instructions, to judge.")
    ] = False,
    preferences: Annotated[
        bool, typer.Option("--preferences", help="Preference pairs from records that jpo feedback has judged.")
    ] = False,
    count: Annotated[
        Optional[int],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
        typer.Option("--count", min=1, help="Candidates to make [default: half as many as items]."),
    ] = None,
    mix: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--mix", help="Shares of chosen-chosen, rejected-rejected, chosen-rejected: CC=1,RR=1,CR=2."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal files.")] = 0,
) -> None:
    """Build pairs out of records, deterministically by seed.

    Without --weak, --candidates or --preferences: preferences where every record carries a verdict (the key
    feedback) and neither --count nor --mix is given, else candidates.
    """
    from jpo.data.readers import read_records, write_records
    from jpo.data.records import preference_pairs
    from jpo.data.report import Report
    from jpo.errors import JpoError
    from jpo.feedback import pairs as build

    if weak + candidates + preferences > 1:
        raise JpoError("--weak, --candidates, --preferences: expected at most one of them")
    records = read_records(input)
    asked = count is not None or mix is not None
    if not (weak or candidates or preferences):
        preferences = not asked and all("feedback" in record for record in records)
        candidates = not preferences
    if asked and not candidates:
        raise JpoError("--count and --mix: only candidates (--candidates) know them")
    report = Report()
    if weak:
        given = preference_pairs(records, report=report)
        report.kept = 0
        result, noun = build.weak_joint_pairs(given, seed, report), "weak joint pairs"
    elif preferences:
        result, noun = build.preferences_from_feedback(records, report=report), "preference pairs"
    else:
        items = build.items_of(records, report=report)
        shares = None if mix is None else build.parse_mix(mix)
        result, noun = build.joint_candidates(items, count, seed, shares), f"joint candidates of {len(items)} items"
    if not result:
        raise JpoError(f"no {noun} came out of {len(records)} records:\n{report}")
    write_records(output, result)
    typer.echo(f"{report}\n{len(result)} {noun} written to {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo pairs` to the command line."""
    app.command("pairs")(pairs)
