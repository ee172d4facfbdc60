"""The flags that choose a judge and bound what it is asked: those of jpo feedback and jpo evaluate alike."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from jpo import defaults

BaseUrl = Annotated[
    Optional[str],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
    typer.Option("--base-url", help="openai: the server, e.g. http://localhost:8000/v1; without credentials."),
]
JudgeModel = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", help="openai: the model's name on the server; local: the model to load."),
]
ProtocolName = Annotated[
    str,
    typer.Option(
        "--protocol", help="tie: A, B or tie. forced, as in the paper: one of two; ties where the two orders disagree."
    ),
]
TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        help="What an instruction is to the judge: plain, tldr (a post to summarize), or a text with {instruction}.",
    ),
]
PromptFiles = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--prompt",
        help="File of your own wording, with {instruction}, {response_a}, {response_b}; or, for joint candidates, with "
        "{instruction_a}, {response_a}, {instruction_b}, {response_b}; {mark} where you like. May repeat: one of each.",
    ),
]
Temperature = Annotated[
    float, typer.Option("--judge-temperature", help="openai: sent with each request; below 0: left out.")
]
MaxTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--judge-max-tokens",
        help=f"openai: tokens of a reply at most; 0: no bound is sent. (default: {defaults.MAX_TOKENS})",
    ),
]
Concurrency = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--concurrency",
        help=f"Questions at once. (default: {defaults.CONCURRENCY}; {defaults.FUNCTION_CONCURRENCY} for a function)",
    ),
]
Timeout = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--timeout", help=f"Seconds for one request, its body included. (default: {defaults.TIMEOUT:g})"),
]
TotalTimeout = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--total-timeout", help="Seconds for the run; what came until then is kept. (default: no end)"),
]
MaxAttempts = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--max-attempts", help=f"Attempts for each question. (default: {defaults.MAX_ATTEMPTS})"),
]
JournalFile = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--journal", help="SQLite file of verdicts. (default: OUTPUT.journal.sqlite)"),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask failed questions again.")]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="Of a damaged journal keep what is sound, beside the damaged file, and go on.")
]


def question_of(protocol: str, task: str, prompts: list[str] | None) -> Any:
    """The Question of the flags; JpoError for what cannot be, before anything is asked."""
    from jpo.feedback.prompts import Question, read_wording

    return Question(protocol, task, read_wording(prompts or ()))


def checked_judge(
    spec: str,
    base_url: str | None,
    model: str | None,
    timeout: float | None,
    total_timeout: float | None,
    temperature: float,
    max_tokens: int | None,
    question: Any,
) -> Any:
    """The judge of the flags; JpoError for what cannot be."""
    from jpo.errors import JpoError
    from jpo.feedback.judges import make_judge

    for name, value in (("--timeout", timeout), ("--total-timeout", total_timeout)):
        if value is not None and not 0 < value < float("inf"):
            raise JpoError(f"{name}: expected a positive number of seconds, got {value}")
    if not temperature < float("inf"):
        raise JpoError(f"--judge-temperature: expected a number, got {temperature}")
    if max_tokens is not None and max_tokens < 0:
        raise JpoError(f"--judge-max-tokens: expected a whole number of at least 0, got {max_tokens}")
    return make_judge(
        spec,
        base_url=base_url,
        model=model,
        timeout=defaults.TIMEOUT if timeout is None else timeout,
        temperature=temperature if temperature >= 0 else None,
        max_tokens=defaults.MAX_TOKENS if max_tokens is None else max_tokens or None,
        question=question,
    )


def asking(
    spec: str,
    question: Any,
    *,
    journal: str | None,
    concurrency: int | None,
    max_attempts: int | None,
    retry_failed: bool,
    salvage: bool,
    total_timeout: float | None,
) -> dict[str, Any]:
    """The options of jpo.feedback.acquire.acquire out of the flags."""
    from jpo.feedback.judges import slots

    return {
        "journal": journal,
        "question": question,
        "concurrency": slots(spec, concurrency),
        "max_attempts": defaults.MAX_ATTEMPTS if max_attempts is None else max_attempts,
        "retry_failed": retry_failed,
        "salvage": salvage,
        "total_timeout": total_timeout,
    }
