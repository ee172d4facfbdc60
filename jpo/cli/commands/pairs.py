"""`jpo pairs`: weak joint pairs, conditional and joint candidates to judge, and preference pairs out of verdicts."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer


def pairs(
    input: Annotated[list[str], typer.Option("--input", help="Records to read (.jsonl, .json, .parquet); may repeat.")],
    output: Annotated[str, typer.Option("--output", help="The .jsonl file to write; replaced as a whole.")],
    weak: Annotated[
        bool,
        typer.Option("--weak", help="Joint pairs: chosen responses over rejected ones of other instructions."),
    ] = False,
    conditional: Annotated[
        bool,
        typer.Option("--conditional", help="Candidates of two responses to one instruction, to judge."),
    ] = False,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Joint candidates of two items with different instructions, to judge.")
    ] = False,
    preferences: Annotated[
        bool, typer.Option("--preferences", help="Preference pairs from records that jpo feedback has judged.")
    ] = False,
    count: Annotated[
        Optional[int],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
        typer.Option("--count", min=1, help="Joint candidates to make (default: half as many as items)."),
    ] = None,
    mix: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--mix", help="Shares of chosen-chosen, rejected-rejected, chosen-rejected: CC=1,RR=1,CR=2."),
    ] = None,
    per_instruction: Annotated[
        int, typer.Option("--per-instruction", min=1, help="Conditional candidates of each instruction at most.")
    ] = 1,
    keep_ties: Annotated[
        bool, typer.Option("--keep-ties", help="Ties as records too, for --loss dpo_rk and dpo_davidson.")
    ] = False,
    majority: Annotated[
        bool, typer.Option("--majority", help="One pair of what several annotators judged: the majority's.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal files.")] = 0,
) -> None:
    """Build pairs out of records: candidates to judge, preference pairs out of verdicts, weak joint pairs.

    Equal seeds give equal files. The way from samples to a joint training set:

    jpo generate --model M --input sft.jsonl --n 2 --output samples.jsonl

    jpo pairs --conditional --input samples.jsonl --output conditional.jsonl

    jpo feedback --input conditional.jsonl --output conditional_feedback.jsonl --judge ...

    jpo pairs --candidates --mix CC=1,RR=1,CR=2 --input conditional_feedback.jsonl --output joint.jsonl

    jpo feedback --input joint.jsonl --output joint_feedback.jsonl --judge ...

    jpo pairs --preferences --input joint_feedback.jsonl --output joint_pairs.jsonl

    An item of a joint candidate carries its label out of the conditional verdict: chosen, rejected or none. Without any
    of --weak, --conditional, --candidates, --preferences: preferences where every record carries a verdict (the key
    feedback) and neither --count nor --mix is given, else joint candidates. What is dropped is counted and said.
    """
    from jpo.data.readers import read_records, write_records
    from jpo.data.report import Report
    from jpo.errors import JpoError

    if weak + conditional + candidates + preferences > 1:
        raise JpoError("--weak, --conditional, --candidates, --preferences: expected at most one of them")
    records = read_records(input)
    asked = count is not None or mix is not None
    if not (weak or conditional or candidates or preferences):
        preferences = not asked and all("feedback" in record for record in records)
        candidates = not preferences
    if asked and not candidates:
        raise JpoError("--count and --mix: only candidates (--candidates) know them")
    if per_instruction > 1 and not conditional:
        raise JpoError("--per-instruction: only --conditional knows it")
    if (keep_ties or majority) and not preferences:
        raise JpoError("--keep-ties and --majority: only preferences (--preferences) know them")
    report = Report()
    if weak or preferences:
        result, noun = _pairs(records, weak, seed, report, keep_ties, majority)
    else:
        result, noun = _candidates(records, conditional, per_instruction, count, mix, seed, report)
    if not result:
        raise JpoError(f"no {noun} came out of {len(records)} records:\n{report}")
    write_records(output, result)
    typer.echo(f"{report}\n{len(result)} {noun} written to {output}")


def _pairs(
    records: Any, weak: bool, seed: int, report: Any, keep_ties: bool, majority: bool
) -> tuple[list[dict[str, Any]], str]:
    from jpo.data.records import preference_pairs
    from jpo.feedback import pairs as build

    if not weak:
        made = build.preferences_from_feedback(records, report=report, keep_ties=keep_ties, majority=majority)
        return made, "preference pairs"
    given = preference_pairs(records, report=report)
    report.kept = 0
    return build.weak_joint_pairs(given, seed, report), "weak joint pairs"


def _candidates(
    records: Any, conditional: bool, per_instruction: int, count: int | None, mix: str | None, seed: int, report: Any
) -> tuple[list[dict[str, Any]], str]:
    from jpo.feedback import pairs as build

    if conditional:
        return build.conditional_candidates(records, per_instruction, seed, report=report), "conditional candidates"
    items = build.items_of(records, report=report)
    shares = None if mix is None else build.parse_mix(mix)
    return build.joint_candidates(items, count, seed, shares), f"joint candidates of {len(items)} items"


def register(app: typer.Typer) -> None:
    """Adds `jpo pairs` to the command line."""
    app.command("pairs")(pairs)
