"""jpo feedback: ask a judge about candidates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, Optional

import typer

from jpo.cli import judge_options as flags


def feedback(
    input: Annotated[str, typer.Option("--input", help="Candidates, conditional or joint (.jsonl, .json, .parquet).")],
    output: Annotated[str, typer.Option("--output", help="JSONL file; run again to go on where it was.")],
    judge: Annotated[str, typer.Option("--judge", help="openai, local or module:function.")],
    base_url: flags.BaseUrl = None,
    model: flags.JudgeModel = None,
    protocol: flags.ProtocolName = "tie",
    task: flags.TaskName = "plain",
    prompt: flags.PromptFiles = None,
    judge_temperature: flags.Temperature = 0.0,
    judge_max_tokens: flags.MaxTokens = None,
    concurrency: flags.Concurrency = None,
    timeout: flags.Timeout = None,
    total_timeout: flags.TotalTimeout = None,
    max_attempts: flags.MaxAttempts = None,
    journal: flags.JournalFile = None,
    retry_failed: flags.RetryFailed = False,
    salvage: flags.Salvage = False,
    prompt_price: Annotated[
        Optional[float],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
        typer.Option("--prompt-price", help="Price of a million prompt tokens, to print the cost."),
    ] = None,
    completion_price: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--completion-price", help="Price of a million completion tokens."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the questions and what the journal knows of them; ask nothing.")
    ] = False,
) -> None:
    """Ask a judge which side is better, twice with the order swapped; adds feedback: 0, 1, 2 (equal) or null (failed).

    Conditional candidates are {instruction, response_0, response_1}; joint ones {instruction_0, response_0, instruction_1,
    response_1}, with label_0 and label_1 travelling along like every other key. The same side in both orders gives 0 or
    1; anything else that parses gives 2. A reply must name one side (A, (a), Output (b), Answer: B ...) or be a tie, an
    explanation may follow on further lines; what names both or none, and every fault of the network, is one attempt. The
    key of an OpenAI-compatible server comes from the environment: OPENAI_API_KEY. What the journal knows is never asked
    again; a verdict belongs to the judge, the protocol, the wording and the texts.

    jpo feedback --input candidates.jsonl --output feedback.jsonl --judge openai --model NAME --base-url URL

    jpo feedback --input candidates.jsonl --output feedback.jsonl --judge local --model smollm2-135m

    jpo feedback --input candidates.jsonl --output feedback.jsonl --judge my_module:my_function

    A function gets the prompt's text and returns "A", "B" or "tie"; a plain one is called in one thread, a coroutine side
    by side.
    """
    from jpo.cli.progress import bar
    from jpo.feedback.acquire import acquire, plan

    question = flags.question_of(protocol, task, prompt)
    options = flags.asking(
        judge,
        question,
        journal=journal,
        concurrency=concurrency,
        max_attempts=max_attempts,
        retry_failed=retry_failed,
        salvage=salvage,
        total_timeout=total_timeout,
    )
    if dry_run:
        known = {name: options[name] for name in ("journal", "question", "max_attempts")}
        typer.echo(f"{plan(input, output, _named(judge, base_url, model), **known)}")
        return
    asked = flags.checked_judge(
        judge, base_url, model, timeout, total_timeout, judge_temperature, judge_max_tokens, question
    )
    with bar("judged") as progress:
        summary = acquire(input, output, asked, progress=progress, **options)
    cost = ""
    if prompt_price is not None or completion_price is not None:
        cost = f"; cost {summary.cost(prompt_price or 0.0, completion_price or 0.0):.4f}"
    typer.echo(f"{summary}{cost}; written to {output}")


def _named(spec: str, base_url: str | None, model: str | None) -> Any:
    """What a dry run needs of a judge; no key, no server."""
    from jpo.feedback.judges import make_judge, server_name

    return (
        SimpleNamespace(name=server_name(base_url, model))
        if spec == "openai" and model
        else make_judge(spec, model=model)
    )


def register(app: typer.Typer) -> None:
    """Adds `jpo feedback`."""
    app.command("feedback")(feedback)
