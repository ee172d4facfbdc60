"""Options that are declared once, as the fields of a dataclass, and their values out of YAML files, by type.

Knows types, names and YAML; never what an option means (jpo.train.config and jpo.study.config declare them).
"""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jpo.errors import JpoError

T = TypeVar("T")
Group = Literal["data", "optimization", "adapter", "objective", "output"]  # as --help shows the options


def option(default: Any, text: str, group: Group = "optimization", first: bool = False) -> Any:
    """A config field with its help text; `first`: one of the few that most people need."""
    return field(default=default, metadata={"help": text, "group": group, "first": first})


def nearest(name: Any, known: Collection[str]) -> str:
    """A clause that names the known option that `name` is likest to; nothing where none is like it."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# ---- types ----------------------------------------------------------------------------------------------------------

_HINTS: dict[type, dict[str, Any]] = {}
_SHOWN = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "a list",
    dict: "a mapping",
    type(None): "null",
}


def hints(cls: type) -> dict[str, Any]:
    """Field -> its type, names resolved; once for each class."""
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def optional(cls: type, name: str) -> bool:
    """Whether the field may be None."""
    return type(None) in members(hints(cls)[name])


def choices_of(cls: type) -> dict[str, tuple[str, ...]]:
    """Field -> its choices, of the fields whose type is a Literal (or that or None)."""
    found = {}
    for name, hint in hints(cls).items():
        kinds = [kind for kind in members(hint) if kind is not type(None)]
        if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
            found[name] = get_args(kinds[0])
    return found


def explained(cls: type[T]) -> type[T]:
    """Adds every field's type, default and help to the class's docstring: help(PreferenceConfig) reads it."""
    lines = []
    for item in fields(cls):  # type: ignore[arg-type]  # a dataclass, which no bound says
        kind = str(item.type).replace("typing.", "")
        choices = choices_of(cls).get(item.name)
        kind = " | ".join(map(repr, choices)) if choices and "None" not in kind else kind
        lines.append(f"    {item.name}: {kind} = {item.default!r}\n        {item.metadata['help']}")
    cls.__doc__ = (
        f"{cls.__doc__}\n\n    Fields, each a flag of the command line and a key of --config FILE.yaml:\n\n"
        + "\n".join(lines)
    )
    return cls


# ---- values ---------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's, a path as text; anything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "shape", None) == () else value


def converted(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type says, or JpoError: whole numbers pass for floats, the parts of a list[...] are converted, and
    a section (dict) without a line is an empty one. Which choice of a Literal it is, is the class's to check."""
    if value is None and get_origin(hint) is dict:
        return {}
    kinds = members(hint)
    if not any(_is(value, kind) for kind in kinds):
        shown = dict.fromkeys(_SHOWN[_python_types(kind)[-1]] for kind in kinds)
        raise JpoError(f"{where}: expected {_either(list(shown))}, got {value!r}")
    if get_origin(hint) is list:
        (of,) = get_args(hint)
        return [converted(part, of, where) for part in value]
    return float(value) if float in kinds and type(value) is int else value


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, _python_types(kind)) and (kind is bool or not isinstance(value, bool))


def _python_types(kind: Any) -> tuple[type, ...]:
    """What a value of the type is in Python, the one that _SHOWN knows last."""
    origin = get_origin(kind)
    if origin is None:
        return (int, float) if kind is float else (kind,)
    return (str,) if origin is Literal else (dict,) if origin in (Mapping, dict) else (list, tuple)


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


# ---- YAML -----------------------------------------------------------------------------------------------------------

# what YAML 1.1 takes for text though it is a number: 1e-4, without a point; with one it already knows it
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")


def parse_yaml(text: Any) -> Any:
    """The value of a YAML text or open file; numbers such as 1e-4, which YAML 1.1 reads as text, are numbers."""
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader with one more form of numbers, which refuses a key that stands twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            """A mapping whose keys differ."""
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            for key, _ in node.value:
                if keys.count(key.value) > 1:
                    raise yaml.YAMLError(f"key {key.value!r} stands twice, at line {key.start_mark.line + 1} for one")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
    return yaml.load(text, Loader)  # a SafeLoader


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping of a YAML file; {} for an empty one."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = parse_yaml(file)
    except OSError as error:
        raise JpoError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JpoError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if values is not None and not isinstance(values, dict):
        raise JpoError(f"{path}: expected a mapping of options, got {type(values).__name__}")
    return values or {}
