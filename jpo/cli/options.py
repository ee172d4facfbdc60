"""Flags out of config classes: an option is declared once, in the class; YAML and flags follow. Flags win."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, TypeVar

import typer

from jpo.declared import hints, members, read_yaml
from jpo.train.config import TrainingConfig

Check = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="Refuse a model whose weights hold NaN or infinity.",
        show_default=False,
        rich_help_panel="Optimization",
    ),
]
Model = Annotated[str, typer.Option("--model", help="smollm2-135m, tiny, a directory, a GGUF file.")]
BaseModel = Annotated[str, typer.Option("--model", help="The base model: a name, a directory, a GGUF file.")]
BaseAdapter = Annotated[str, typer.Option("--adapter", help="The adapter's directory (PEFT's format).")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on. (default: this machine alone)")]
Port = Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")]
CacheDtype = Annotated[
    str,
    typer.Option(
        "--cache-dtype",
        help="How keys and values are stored: float32; bfloat16, float16 (half the memory); q8_0 (a quarter).",
    ),
]
C = TypeVar("C", bound=TrainingConfig)
FIRST = "Options"  # what most people need; then the groups that --help shows, in this order
GROUPS = {
    "data": "Data",
    "optimization": "Optimization",
    "adapter": "Adapter",
    "objective": "Objective",
    "output": "Output",
}
_ORDER = [FIRST, *GROUPS.values()]


def compute_for(config: TrainingConfig, resume: bool) -> Any:
    """What to load a model with: as the options say, otherwise as the run that is resumed was started with, otherwise
    auto."""
    from jpo.train.checkpoint import compute_of

    held = compute_of(config.output) if resume and config.output else None
    return config.compute or held or "auto"


def _kind(hint: Any) -> type:
    """The type that a flag reads: a Literal and a list are text."""
    kinds = [kind for kind in members(hint) if kind is not type(None)]
    return kinds[0] if kinds[0] in (int, float, bool) else str


def _parameter(item: Field[Any], hint: Any) -> inspect.Parameter:
    kind = _kind(hint)
    flag = "--" + item.name.replace("_", "-")
    shown = "" if item.default is None else f" (default: {item.default})"  # square brackets would be markup
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=item.metadata["help"] + shown,
        show_default=False,
        rich_help_panel=FIRST if item.metadata["first"] else GROUPS[item.metadata["group"]],
    )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


def with_config(config_class: type[TrainingConfig]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds every option of `config_class`, and --config, as flags to a command that takes them as **options."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        yaml_info = typer.Option(
            "--config", help="YAML file of options; flags win.", show_default=False, rich_help_panel=GROUPS["data"]
        )
        added = [
            inspect.Parameter(
                "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, yaml_info]
            )
        ]
        added += [_parameter(item, hints(config_class)[item.name]) for item in fields(config_class)]
        signature = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        signature.sort(key=_place)

        def run(**values: Any) -> Any:
            return command(**values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature}
        return run

    return decorate


def _place(parameter: inspect.Parameter) -> int:
    """Where --help shows it: what most people need, then group by group; stable within a group."""
    return _ORDER.index(parameter.annotation.__metadata__[0].rich_help_panel or FIRST)


def build(config_class: type[C], options: dict[str, Any], extra: dict[str, Any]) -> C:
    """The config of a command's flags: the YAML file's keys below them. `extra` takes the command's own flags (model,
    data, ...) that the file may hold too; they are filled in place."""
    path = options.pop("config", None)
    values = read_yaml(path) if path else {}
    for key in list(extra):
        stored = values.pop(key, None)
        if extra[key] in (None, [], False):
            extra[key] = stored if stored is not None else extra[key]
    values.update({key: value for key, value in options.items() if value is not None})
    return config_class.from_dict(values, path or "options")
