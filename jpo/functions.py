"""Functions that an option names as "module:function": judges, embeddings. Knows imports; never what they compute."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from jpo.errors import JpoError


def function_named(spec: str, option: str, expected: str) -> Callable[..., Any]:
    """The function that "module:function" (or module:object.method) names; the current folder is searched too.

    JpoError, beginning with `option` and ending with what was `expected`, where there is none that can be called."""
    module, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # the installed command starts without it
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise JpoError(f"{option} {spec!r}: {error}; expected {expected}") from None
    if not callable(found):
        raise JpoError(f"{option} {spec!r}: expected a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]
