"""Regular expressions out of foreign files, held to forms that cannot take long.

Python's matcher backtracks: `([a-z.]+)+X` takes longer than anybody waits on a name of thirty letters, and does not
hear Ctrl-C. Names of modules need no such thing. Knows expressions alone; never what they are matched with.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_LONGEST = 1000  # characters of an expression
_MOST = 50_000_000  # ways through an expression; each takes some nanoseconds
_MANY = 64  # ways through one repetition: no name of a module is much longer
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def why_slow(expression: str) -> str | None:
    """Why an expression may take long to match a name of a module, None where it cannot. re.error where it is none."""
    if len(expression) > _LONGEST:
        return f"it has more than {_LONGEST} characters"
    re.compile(expression)
    try:
        ways = _ways(_parser.parse(expression), False)
    except RecursionError:
        return "it is nested too deeply"
    except _Nested:
        return "a repetition holds another one, or alternatives"
    return None if ways <= _MOST else "it holds too many repetitions or alternatives"


class _Nested(Exception):
    """A repetition whose inside can be cut in several ways: exponential."""


def _ways(items: Any, repeated: bool) -> float:
    """An upper bound of the ways in which a name can be matched; `repeated`: within a repetition."""
    ways = 1.0
    for operator, value in items:
        name = str(operator)
        if repeated and name in (*_REPEATS, "BRANCH"):
            raise _Nested
        if name in _REPEATS:
            low, high, inner = value
            within = _ways(inner, repeated or high > 1)
            ways *= within if low == high == 1 else 2 * within if high == 1 else _MANY
        elif name == "BRANCH":
            ways *= sum(_ways(branch, repeated) for branch in value[1])
        elif name == "SUBPATTERN":
            ways *= _ways(value[-1], repeated)
        elif name in ("ASSERT", "ASSERT_NOT"):
            ways *= _ways(value[1], repeated)
        elif name == "ATOMIC_GROUP":
            ways *= _ways(value, repeated)
        elif name == "GROUPREF_EXISTS":
            ways *= sum(_ways(branch, repeated) for branch in value[1:] if branch)
    return ways
