"""`jpo pairs`: weak joint pairs, conditional and joint candidates to judge, which of them to ask next, and preference
pairs out of verdicts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from jpo.cli.selecting import PANEL, ChoosingModel, ChoosingTemplate, no_model

Input = Annotated[list[str], typer.Option("--input", help="Records to read (.jsonl, .json, .parquet); may repeat.")]
Output = Annotated[str, typer.Option("--output", help="The .jsonl file to write; replaced as a whole.")]
Weak = Annotated[
    bool,
    typer.Option("--weak", help="Joint pairs: chosen responses over rejected ones of other instructions."),
]
Conditional = Annotated[
    bool,
    typer.Option("--conditional", help="Candidates of two responses to one instruction, to judge."),
]
Candidates = Annotated[
    bool, typer.Option("--candidates", help="Joint candidates of two items with different instructions, to judge.")
]
Preferences = Annotated[
    bool, typer.Option("--preferences", help="Preference pairs from records that jpo feedback has judged.")
]
Count = Annotated[
    int | None,
    typer.Option(
        "--count",
        min=1,
        help="Joint candidates to make (default: half as many as items); with --select: to ask next.",
    ),
]
Mix = Annotated[
    str | None,
    typer.Option("--mix", help="Shares of chosen-chosen, rejected-rejected, chosen-rejected: CC=1,RR=1,CR=2."),
]
PerInstruction = Annotated[
    int, typer.Option("--per-instruction", min=1, help="Conditional candidates of each instruction at most.")
]
KeepTies = Annotated[bool, typer.Option("--keep-ties", help="Ties as records too, for --loss dpo_rk and dpo_davidson.")]
Majority = Annotated[
    bool, typer.Option("--majority", help="One pair of what several annotators judged: the majority's.")
]
Seed = Annotated[int, typer.Option("--seed", help="Equal seeds give equal files.")]
Select = Annotated[
    Literal["random", "margin", "dopt"] | None,
    typer.Option(
        "--select",
        help="The --count candidates to ask next: by chance; the model's smallest margins; a D-optimal design.",
        rich_help_panel=PANEL,
    ),
]
Feedback = Annotated[
    list[str] | None,
    typer.Option(
        "--feedback", help="Answers so far, of jpo feedback or jpo annotate; may repeat.", rich_help_panel=PANEL
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="Adapter of the round before: its margins. (default: a linear reward fitted to --feedback)",
        rich_help_panel=PANEL,
    ),
]
Compute = Annotated[
    str,
    typer.Option("--compute", help="As of jpo train.", rich_help_panel=PANEL),
]


def pairs(
    input: Input,
    output: Output,
    weak: Weak = False,
    conditional: Conditional = False,
    candidates: Candidates = False,
    preferences: Preferences = False,
    count: Count = None,
    mix: Mix = None,
    per_instruction: PerInstruction = 1,
    keep_ties: KeepTies = False,
    majority: Majority = False,
    seed: Seed = 0,
    select: Select = None,
    feedback: Feedback = None,
    model: ChoosingModel = None,
    adapter: Adapter = None,
    template: ChoosingTemplate = None,
    compute: Compute = "auto",
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
    from jpo.errors import JpoError

    kinds = {"weak": weak, "conditional": conditional, "candidates": candidates, "preferences": preferences}
    asked = [kind for kind, given in kinds.items() if given]
    if len(asked) + (select is not None) > 1:
        raise JpoError("--weak, --conditional, --candidates, --preferences, --select: expected at most one of them")
    if select is None and (feedback or model or adapter or template or compute != "auto"):
        raise JpoError("--feedback, --model, --adapter, --template and --compute: only --select knows them")
    if select is not None and (mix is not None or per_instruction > 1 or keep_ties or majority):
        raise JpoError("--select knows none of --mix, --per-instruction, --keep-ties, --majority")
    check_apart(output, [*input, *(feedback or [])])
    records = read_records(input)
    if select is not None:
        told, result = _selected(select, count, records, feedback, (model, adapter, template, compute), seed)
        noun = "candidates to ask next"
    else:
        judged = count is None and mix is None and all("feedback" in record for record in records)
        kind = asked[0] if asked else "preferences" if judged else "candidates"
        told, result, noun = _built(kind, records, seed, count, mix, per_instruction, keep_ties, majority)
    write_records(output, result)
    typer.echo(f"{told}\n{len(result)} {noun} written to {output}")


def _built(
    kind: str,
    records: Any,
    seed: int,
    count: int | None,
    mix: str | None,
    per_instruction: int,
    keep_ties: bool,
    majority: bool,
) -> tuple[Any, list[dict[str, Any]], str]:
    """(what became of the records, those of this kind built out of them, what they are called)."""
    from jpo.data.records import preference_pairs
    from jpo.data.report import Report
    from jpo.errors import JpoError
    from jpo.feedback import pairs as build

    if (count is not None or mix is not None) and kind != "candidates":
        raise JpoError("--count and --mix: only candidates (--candidates) know them")
    if per_instruction > 1 and kind != "conditional":
        raise JpoError("--per-instruction: only --conditional knows it")
    if (keep_ties or majority) and kind != "preferences":
        raise JpoError("--keep-ties and --majority: only preferences (--preferences) know them")
    report = Report()
    if kind == "weak":
        given = preference_pairs(records, report=report)
        report.kept = 0
        result, noun = build.weak_joint_pairs(given, seed, report), "weak joint pairs"
    elif kind == "preferences":
        result = build.preferences_from_feedback(records, report=report, keep_ties=keep_ties, majority=majority)
        noun = "preference pairs"
    elif kind == "conditional":
        result = build.conditional_candidates(records, per_instruction, seed, report=report)
        noun = "conditional candidates"
    else:
        items = build.items_of(records, report=report)
        result = build.joint_candidates(items, count, seed, None if mix is None else build.parse_mix(mix))
        noun = f"joint candidates of {len(items)} items"
    if not result:
        raise JpoError(f"no {noun} came out of {len(records)} records:\n{report}")
    return report, result, noun


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
        raise no_model(what)
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
