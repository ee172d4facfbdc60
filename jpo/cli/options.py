"""Flags out of config classes: an option is declared once, in the class; YAML and flags follow. Flags win."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, Optional, TypeVar

import typer

from jpo.train.config import TrainingConfig, read_yaml

Check = Annotated[
    bool,
    typer.Option("--check/--no-check", help="Refuse a model whose weights hold NaN or infinity.", show_default=False),
]
C = TypeVar("C", bound=TrainingConfig)
_KINDS = {"int": int, "float": float, "str": str, "bool": bool}


def _parameter(name: str, annotation: str, default: Any, text: str) -> inspect.Parameter:
    kind = next(_KINDS[part.strip()] for part in annotation.split("|") if part.strip() in _KINDS)
    flag = "--" + name.replace("_", "-")
    shown = "" if default is None else f" (default: {default})"  # square brackets would be markup
    declared = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    info = typer.Option(declared, help=text + shown, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[kind], info],  # noqa: UP045
    )


def with_config(config_class: type[TrainingConfig]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds every option of `config_class`, and --config, as flags to a command that takes them as **options."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        yaml_info = typer.Option("--config", help="YAML file of options; flags win.", show_default=False)
        added = [
            inspect.Parameter(
                "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, yaml_info]
            )
        ]  # noqa: UP045
        for item in fields(config_class):
            default = None if item.default is MISSING else item.default
            added.append(_parameter(item.name, str(item.type), default, item.metadata["help"]))
        signature = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added

        def run(**values: Any) -> Any:
            try:
                return command(**values)
            except KeyboardInterrupt:
                where = values.get("output")
                hint = f"; its last whole step is saved: go on with --resume --output {where}" if where else ""
                typer.echo(f"jpo: interrupted{hint}", err=True)
                raise SystemExit(130) from None

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature}
        return run

    return decorate


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
