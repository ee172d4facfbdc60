"""The record forms that are read anywhere, and which of them a record that fits none is nearest to.

Knows keys alone; never what they mean (jpo.data.records does).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

# (what it is, its keys, what reads it)
FORMS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("an example", ("instruction", "response"), "jpo sft"),
    ("an example", ("prompt", "completion"), "jpo sft"),
    ("a conversation", ("messages",), "jpo sft"),
    ("an Alpaca example", ("instruction", "input", "output"), "jpo sft"),
    ("a preference pair", ("i_chosen", "r_chosen", "i_reject", "r_reject"), "jpo train"),
    ("a preference pair", ("prompt", "chosen", "rejected"), "jpo train"),
    ("a preference pair", ("chosen", "rejected"), "jpo train"),
    ("a judged example", ("prompt", "completion", "label"), "jpo train --loss kto"),
    ("candidates", ("instruction", "response_0", "response_1"), "jpo feedback"),
    ("joint candidates", ("instruction_0", "response_0", "instruction_1", "response_1"), "jpo feedback"),
    ("a test item", ("instruction", "gold_response"), "jpo evaluate"),
)


# names that are compared letter by letter, and letters of one: a record of a file may hold a million of either
_COMPARED = 64
_KNOWN = tuple(dict.fromkeys(key for _, keys, _ in FORMS for key in keys))


def nearest_form(keys: Collection[str]) -> str:
    """One clause on the nearest known form: its name, keys and reader, which keys it lacks, and a key misspelled.

    Of more than a few dozen keys, and of very long ones, only those are looked at that some form has."""
    names = [str(key) for key in keys]
    others = [name for name in names if name not in _KNOWN and len(name) <= _COMPARED][:_COMPARED]
    names = [name for name in names if name in _KNOWN] + others
    alike = {key: [_ratio(key, name) for name in names] for key in _KNOWN}

    def likeness(form: tuple[str, tuple[str, ...], str]) -> float:
        rows = [alike[key] for key in form[1]]
        used = sum(max(shares) > 0.8 for shares in zip(*rows, strict=True))
        return sum(max(row, default=0.0) for row in rows) / len(rows) + used / max(1, len(names))

    what, wanted, reader = max(FORMS, key=likeness)
    told = f"nearest is {what} {{{', '.join(wanted)}}}, which {reader} reads"
    lacking = [key for key in wanted if key not in names]
    if lacking:
        near = difflib.get_close_matches(lacking[0], [name for name in names if name not in wanted], n=1)
        told += f"; it lacks {', '.join(lacking)}" + (f" (is {near[0]!r} meant?)" if near else "")
    return told


def _ratio(one: str, other: str) -> float:
    return 1.0 if one == other else 0.8 * difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()
