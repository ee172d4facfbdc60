"""`jpo pairs`: weak joint pairs, conditional and joint candidates to judge, which of them to ask next, and preference
pairs out of verdicts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional

import typer

SELECT = "Which to ask next"


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
        typer.Option(
            "--count",
            min=1,
            help="Joint candidates to make (default: half as many as items); with --select: to ask next.",
        ),
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
    select: Annotated[
        Optional[Literal["random", "margin", "dopt"]],  # noqa: UP045
        typer.Option(
            "--select",
            help="The --count candidates to ask next: by chance; the model's smallest margins; a D-optimal design.",
            rich_help_panel=SELECT,
        ),
    ] = None,
    feedback: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--feedback", help="Answers so far, of jpo feedback or jpo annotate; may repeat.", rich_help_panel=SELECT
        ),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", help="Model whose hidden states and margins choose.", rich_help_panel=SELECT),
    ] = None,
    adapter: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--adapter",
            help="Adapter of the round before: its margins. (default: a linear reward fitted to --feedback)",
            rich_help_panel=SELECT,
        ),
    ] = None,
    template: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--template", help="As of jpo train. (default: the adapter's)", rich_help_panel=SELECT),
    ] = None,
    compute: Annotated[
        str,
        typer.Option("--compute", help="As of jpo train.", rich_help_panel=SELECT),
    ] = "auto",
) -> None:
    """Build pairs out of records: candidates to judge, preference pairs out of verdicts, weak joint pairs.

    Equal seeds give equal files. The way from samples to a joint training set:

    jpo generate --model M --input sft.jsonl --n 2 --output samples.jsonl

    jpo pairs --conditional --input samples.jsonl --output conditional.jsonl

    jpo feedback --input conditional.jsonl --output conditional_feedback.jsonl --judge ...

    jpo pairs --candidates --mix CC=1,RR=1,CR=2 --input conditional_feedback.jsonl --output joint.jsonl

    jpo feedback --input joint.jsonl --output joint_feedback.jsonl --judge ...

    jpo pairs --preferences --input joint_feedback.jsonl --output joint_pairs.jsonl

    Which candidates to ask next, in rounds (answers in, refit, next batch):

    jpo pairs --select dopt --count 50 --input joint.jsonl --feedback answered.jsonl --model M --adapter A
        --output next.jsonl

    What is answered is not asked again. dopt takes the pairs whose answers tell most about a linear reward over the
    model's mean hidden states, beside what the answers so far told (arXiv 2502.04354); margin those with the smallest
    |D|. The first round needs no --feedback and no --adapter.

    An item of a joint candidate carries its label out of the conditional verdict: chosen, rejected or none. Without any
    of --weak, --conditional, --candidates, --preferences: preferences where every record carries a verdict (the key
    feedback) and neither --count nor --mix is given, else joint candidates. What is dropped is counted and said.
    """
    from jpo.data.readers import check_apart, read_records, write_records
    from jpo.data.report import Report
    from jpo.errors import JpoError

    if weak + conditional + candidates + preferences + (select is not None) > 1:
        raise JpoError("--weak, --conditional, --candidates, --preferences, --select: expected at most one of them")
    if select is None and (feedback or model or adapter or template or compute != "auto"):
        raise JpoError("--feedback, --model, --adapter, --template and --compute: only --select knows them")
    if select is not None and (mix is not None or per_instruction > 1 or keep_ties or majority):
        raise JpoError("--select knows none of --mix, --per-instruction, --keep-ties, --majority")
    check_apart(output, [*input, *(feedback or [])])
    records = read_records(input)
    if select is not None:
        told, result = _selected(select, count, records, feedback, (model, adapter, template, compute), seed)
        write_records(output, result)
        typer.echo(f"{told}\n{len(result)} candidates to ask next written to {output}")
        return
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


def _selected(
    strategy: Any,
    count: int | None,
    records: Any,
    feedback: list[str] | None,
    scoring: tuple[str | None, str | None, str | None, Any],
    seed: int,
) -> tuple[str, list[dict[str, Any]]]:
    """(what to say, the candidates to ask next); scoring: model, adapter, template, compute."""
    from jpo.data.readers import read_records
    from jpo.data.report import Report
    from jpo.errors import JpoError
    from jpo.feedback import rounds

    if count is None:
        raise JpoError("--select: say how many candidates to ask next: --count N")
    model, adapter, template, compute = scoring
    if model is None and (strategy != "random" or adapter or template):
        what = f"--select {strategy}" if strategy != "random" else "--adapter and --template"
        raise JpoError(f"{what}: a model is needed; give --model M (a directory, a GGUF file, smollm2-135m)")
    report = Report()
    pool = rounds.pool_of(records, read_records(feedback) if feedback else [], report)
    scored = None
    if strategy != "random" and pool.asked:
        scored = _scored(pool, str(model), adapter, template, compute)
    chosen = rounds.choose(strategy, count, pool, scored, seed)
    lines = [str(report), f"{chosen.left} candidates could be asked, {chosen.answered} comparisons are answered"]
    if chosen.informative is not None:
        mean, whole = chosen.informative
        lines.append(f"mean p(1-p) of those chosen by {strategy}: {mean:.3f}; of all that could be asked: {whole:.3f}")
    if len(chosen.records) < count:
        lines.append(f"--count {count}: only {len(chosen.records)} are left")
    return "\n".join(lines), chosen.records


def _scored(pool: Any, model: str, adapter: str | None, template: str | None, compute: Any) -> Any:
    import jpo
    from jpo.cli.progress import bar
    from jpo.evaluate.sampling import encoder_of
    from jpo.feedback.rounds import score

    lm = jpo.load(model, compute=compute)
    own = lm.load_adapter(adapter) if adapter else None
    talks = any(not isinstance(text, str) for pair in pool.pairs for text in (pair.instruction_0, pair.response_0))
    with bar("scored") as progress:
        return score(lm, pool, encoder_of(lm, own, template, talks), own, progress)


def register(app: typer.Typer) -> None:
    """Adds `jpo pairs` to the command line."""
    app.command("pairs")(pairs)
