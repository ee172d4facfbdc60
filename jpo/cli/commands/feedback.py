"""jpo feedback: ask a judge about candidates."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jpo.cli import judge_options as flags
from jpo.cli.sharding import ExecutorName, ShardCount, ShardText, check_alone, over_executor


@flags.with_judging
def feedback(
    input: Annotated[str, typer.Option("--input", help="Candidates, conditional or joint (.jsonl, .json, .parquet).")],
    output: Annotated[str, typer.Option("--output", help="JSONL file; run again to go on where it was.")],
    judge: Annotated[str, typer.Option("--judge", help="openai, local or module:function.")],
    prompt_price: Annotated[
        float | None,
        typer.Option("--prompt-price", help="Price of a million prompt tokens, to print the cost."),
    ] = None,
    completion_price: Annotated[
        float | None,
        typer.Option("--completion-price", help="Price of a million completion tokens."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the questions and what the journal knows of them; ask nothing.")
    ] = False,
    executor: ExecutorName = None,
    shards: ShardCount = None,
    shard: ShardText = None,
    *,
    judging: flags.Judging,
) -> None:
    """Ask a judge which side is better, twice with the order swapped; adds feedback: 0, 1, 2 (equal) or null (failed).

    Conditional candidates are {instruction, response_0, response_1}; joint ones {instruction_0, response_0,
    instruction_1, response_1}, with label_0 and label_1 travelling along like every other key. The same side in both
    orders gives 0 or 1; anything else that parses gives 2. A reply must name one side (A, (a), Output (b), Answer: B
    ...) or be a tie, an explanation may follow on further lines; what names both or none, and every fault of the
    network, is one attempt. The key of an OpenAI-compatible server comes from the environment: OPENAI_API_KEY. What the
    journal knows is never asked again; a verdict belongs to the judge, the protocol, the wording and the texts.

    jpo feedback --input candidates.jsonl --output feedback.jsonl --judge openai --model NAME --base-url URL

    jpo feedback --input candidates.jsonl --output feedback.jsonl --judge local --model smollm2-135m

    jpo feedback --input candidates.jsonl --output feedback.jsonl --judge my_module:my_function

    A function gets the prompt's text and returns "A", "B" or "tie"; a plain one is called in one thread, a coroutine
    side by side.
    """
    from jpo.cli.progress import bar
    from jpo.data.readers import check_source
    from jpo.feedback.acquire import acquire, plan
    from jpo.parallel.shards import Part, Shard

    check_source(input)
    if dry_run:
        typer.echo(f"{plan(input, output, judging.named(judge), **judging.known())}")
        return
    check_alone("jpo feedback", executor, shard)
    if executor and not over_executor(executor, shards, output, judging.values["journal"]):
        return
    source: Any = input
    if shard:
        part = Shard.parse(shard)
        judging = judging.of_shard(part, output)
        source, output = Part(input, part), part.path(output)
    asked = judging.judge(judge)
    with bar("judged") as progress:
        summary = acquire(source, output, asked, progress=progress, **judging.options(judge))
    cost = ""
    if prompt_price is not None or completion_price is not None:
        cost = f"; cost {summary.cost(prompt_price or 0.0, completion_price or 0.0):.4f}"
    typer.echo(f"{summary}{cost}; written to {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo feedback`."""
    app.command("feedback")(feedback)
