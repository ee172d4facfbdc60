"""jpo feedback: ask a judge about candidates."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def feedback(
    input: Annotated[str, typer.Option("--input", help="Candidates, conditional or joint.")],
    output: Annotated[str, typer.Option("--output", help="JSONL file; running again goes on where it was.")],
    judge: Annotated[str, typer.Option("--judge", help="openai, local or module:function.")],
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="openai: the server, e.g. http://localhost:8000/v1.")
    ] = None,  # noqa: UP045
    model: Annotated[
        str | None, typer.Option("--model", help="openai: the model's name; local: the model to load.")
    ] = None,  # noqa: UP045
    concurrency: Annotated[int, typer.Option("--concurrency", help="Requests at once.")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for one request, its body included.")] = 60.0,
    total_timeout: Annotated[Optional[float], typer.Option("--total-timeout", help="Seconds for the run.")] = None,  # noqa: UP045
    max_attempts: Annotated[int, typer.Option("--max-attempts", help="Attempts for each question.")] = 3,
    journal: Annotated[
        str | None, typer.Option("--journal", help="SQLite file of verdicts. [default: OUTPUT.journal.sqlite]")
    ] = None,  # noqa: UP045
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask failed questions again.")] = False,
) -> None:
    """Ask a judge which side is better, twice with the order swapped; adds feedback: 0, 1, 2 (equal) or null (failed).

    The key of an OpenAI-compatible server comes from the environment: OPENAI_API_KEY.
    """
    from jpo.errors import JpoError
    from jpo.feedback.acquire import acquire
    from jpo.feedback.judges import make_judge

    for name, value in (("--timeout", timeout), ("--total-timeout", total_timeout)):
        if value is not None and not value > 0:
            raise JpoError(f"{name}: expected a positive number of seconds, got {value}")
    summary = acquire(
        input,
        output,
        make_judge(judge, base_url=base_url, model=model, timeout=timeout),
        journal=journal,
        concurrency=concurrency,
        max_attempts=max_attempts,
        retry_failed=retry_failed,
        total_timeout=total_timeout,
    )
    typer.echo(f"{summary}; written to {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo feedback`."""
    app.command("feedback")(feedback)
