"""The flags that choose a judge and bound what it is asked: those of jpo feedback and jpo evaluate alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from jpo import defaults

BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", help="openai: the server, e.g. http://localhost:8000/v1; without credentials."),
]
JudgeModel = Annotated[
    str | None,
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
    list[str] | None,
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
    int | None,
    typer.Option(
        "--judge-max-tokens",
        help=f"openai: tokens of a reply at most; 0: no bound is sent. (default: {defaults.MAX_TOKENS})",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        help=f"Questions at once. (default: {defaults.CONCURRENCY}; {defaults.FUNCTION_CONCURRENCY} for a function)",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", help=f"Seconds for one request, its body included. (default: {defaults.TIMEOUT:g})"),
]
TotalTimeout = Annotated[
    float | None,
    typer.Option("--total-timeout", help="Seconds for the run; what came until then is kept. (default: no end)"),
]
MaxAttempts = Annotated[
    int | None,
    typer.Option("--max-attempts", help=f"Attempts for each question. (default: {defaults.MAX_ATTEMPTS})"),
]
JournalFile = Annotated[
    str | None,
    typer.Option("--journal", help="SQLite file of verdicts. (default: OUTPUT.journal.sqlite)"),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask failed questions again.")]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="Of a damaged journal keep what is sound, beside the damaged file, and go on.")
]


FLAGS: dict[str, tuple[Any, Any]] = {  # name -> (annotation, default)
    "base_url": (BaseUrl, None),
    "model": (JudgeModel, None),
    "protocol": (ProtocolName, "tie"),
    "task": (TaskName, "plain"),
    "prompt": (PromptFiles, None),
    "judge_temperature": (Temperature, 0.0),
    "judge_max_tokens": (MaxTokens, None),
    "concurrency": (Concurrency, None),
    "timeout": (Timeout, None),
    "total_timeout": (TotalTimeout, None),
    "max_attempts": (MaxAttempts, None),
    "journal": (JournalFile, None),
    "retry_failed": (RetryFailed, False),
    "salvage": (Salvage, False),
}


def with_judging(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the flags above to a command, which takes them together as its last parameter `judging`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "judging"]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=default, annotation=hint) for name, (hint, default) in FLAGS.items()]
    signature = [p.replace(kind=kind) for p in own] + added

    def run(**values: Any) -> Any:
        return command(**{p.name: values.pop(p.name) for p in own}, judging=Judging(**values))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature}
    return run


class Judging:
    """The values of the flags, as the judge, the question and the options of an acquisition."""

    def __init__(self, **values: Any):
        from jpo.feedback.prompts import Question, read_wording

        self.values = values
        self.beside: str | None = None
        self.question = Question(values["protocol"], values["task"], read_wording(values["prompt"] or ()))

    def of_shard(self, shard: Any, output: str) -> Judging:
        """The same for a shard of `output`: with a journal of its own, beside the whole's."""
        journal = self.values["journal"]
        part = Judging(**self.values | {"journal": shard.path(journal) if journal else None})
        part.beside = journal or f"{output}.journal.sqlite"
        return part

    def judge(self, spec: str) -> Any:
        """The judge of --judge; JpoError for what cannot be, before anything is asked."""
        from jpo.errors import JpoError
        from jpo.feedback.judges import make_judge

        v = self.values
        for name in ("timeout", "total_timeout"):
            if v[name] is not None and not 0 < v[name] < float("inf"):
                flag = name.replace("_", "-")
                raise JpoError(f"--{flag}: expected a positive number of seconds, got {v[name]}")
        temperature, most = v["judge_temperature"], v["judge_max_tokens"]
        if not temperature < float("inf"):
            raise JpoError(f"--judge-temperature: expected a number, got {temperature}")
        if most is not None and most < 0:
            raise JpoError(f"--judge-max-tokens: expected a whole number of at least 0, got {most}")
        return make_judge(
            spec,
            base_url=v["base_url"],
            model=v["model"],
            timeout=defaults.TIMEOUT if v["timeout"] is None else v["timeout"],
            temperature=temperature if temperature >= 0 else None,
            max_tokens=defaults.MAX_TOKENS if most is None else most or None,
            question=self.question,
        )

    def named(self, spec: str) -> Any:
        """What a dry run needs of a judge; no key, no server."""
        from jpo.feedback.judges import make_judge, server_name

        model = self.values["model"]
        if spec == "openai" and model:
            return SimpleNamespace(name=server_name(self.values["base_url"], model))
        return make_judge(spec, model=model)

    def known(self) -> dict[str, Any]:
        """The options of jpo.feedback.acquire.plan."""
        attempts = self.values["max_attempts"]
        return {
            "journal": self.values["journal"],
            "question": self.question,
            "max_attempts": defaults.MAX_ATTEMPTS if attempts is None else attempts,
        }

    def options(self, spec: str) -> dict[str, Any]:
        """The options of jpo.feedback.acquire.acquire."""
        from jpo.feedback.judges import slots

        rest = {name: self.values[name] for name in ("retry_failed", "salvage", "total_timeout")}
        own = {"concurrency": slots(spec, self.values["concurrency"]), "beside": self.beside}
        return {**self.known(), **own, **rest}
