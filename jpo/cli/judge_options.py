"""The flags that choose a judge and bound what it is asked: those of jpo feedback and jpo evaluate alike."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

BaseUrl = Annotated[
    Optional[str],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
    typer.Option("--base-url", help="openai: the server, e.g. http://localhost:8000/v1."),
]
JudgeModel = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", help="openai: the model's name on the server; local: the model to load."),
]
Concurrency = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--concurrency", help="Questions at once. (default: 8; 64 for a function)"),
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds for one request, its body included.")]
TotalTimeout = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--total-timeout", help="Seconds for the run; what came until then is kept. (default: no end)"),
]
MaxAttempts = Annotated[int, typer.Option("--max-attempts", help="Attempts for each question.")]
JournalFile = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--journal", help="SQLite file of verdicts. (default: OUTPUT.journal.sqlite)"),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask failed questions again.")]


def slots(spec: str, concurrency: int | None) -> int:
    """Questions at once: a function's share one commit, so that more of them cost fewer syncs."""
    return concurrency if concurrency is not None else 64 if ":" in spec else 8


def checked_judge(
    spec: str, base_url: str | None, model: str | None, timeout: float, total_timeout: float | None
) -> Any:
    """The judge of the flags; JpoError for what cannot be."""
    from jpo.errors import JpoError
    from jpo.feedback.judges import make_judge

    for name, value in (("--timeout", timeout), ("--total-timeout", total_timeout)):
        if value is not None and not 0 < value < float("inf"):
            raise JpoError(f"{name}: expected a positive number of seconds, got {value}")
    return make_judge(spec, base_url=base_url, model=model, timeout=timeout)
