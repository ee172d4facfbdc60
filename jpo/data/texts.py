"""A value of a record as a text or a conversation: checked, joined of its parts, brought to its shortest form.

What can be no text is an error naming file, line and key; what is blank is `Drop`ped. Knows values under a key, never
what a record means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jpo.data.forms import nearest_form
from jpo.errors import DataError

Messages = tuple[dict[str, str], ...]
Text = str | Messages  # a plain text, or a conversation that has more than the one turn which a plain text says

_ROLES = ("system", "user", "assistant", "tool", "developer")


class Drop(Exception):
    """A well-formed record of no use; the message is the reason counted."""


def plain(text: Text) -> Any:
    """As JSON holds it: a string, or a list of messages."""
    return text if isinstance(text, str) else list(text)


def text_key(text: Text) -> str:
    """A text or conversation as a string that equals another's only where they are equal."""
    return text if isinstance(text, str) else "\0" + json.dumps(text, sort_keys=True, ensure_ascii=False)


def text_of(record: Mapping[str, Any], key: str, where: str) -> Text:
    """The text or conversation under `key`: present, of the right type, encodable, not blank."""
    if key not in record:
        raise DataError(f"{where}: key {key!r} is missing or null; got {keys_of(record)}; {nearest_form(record)}")
    value = record[key]
    if isinstance(value, str):
        check_unicode(value, key, where)
        if not value.strip():
            raise Drop(f"blank {key}")
        return str(value)
    if messages_of(value) is None:
        raise DataError(f"{where}: {key}: expected a string (or a list of messages), got {_type(value)}")
    answer = key.startswith(("r_", "response", "gold")) or key in ("chosen", "rejected", "completion")
    turns = checked(value, key, where)
    if answer and turns[0]["role"] != "assistant":
        raise DataError(f"{where}: {key}: expected the assistant's turns alone, got {roles_of(turns)}")
    return shortest_form(turns, "assistant" if answer else "user")


def messages_of(value: Any) -> list[Any] | None:
    """`value` as a list if it is one (tuple, array), else None."""
    if hasattr(value, "tolist") and not isinstance(value, str):  # NumPy arrays, out of pandas
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple)) else None


def holds_messages(record: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether a conversation stands under one of the keys."""
    return any(messages_of(record[key]) is not None for key in keys if key in record)


def checked(value: Any, key: str, where: str) -> Messages:
    """A list of messages, each with a role that is known and a text; DataError names the one that has none."""
    turns = []
    for index, turn in enumerate(messages_of(value) or []):
        place = f"{where}: {key}[{index}]"
        if not isinstance(turn, Mapping) or "role" not in turn:
            raise DataError(f"{place}: expected a message {{'role': ..., 'content': ...}}, got {_type(turn)}")
        if turn["role"] not in _ROLES:
            raise DataError(f"{place}: role: expected one of {', '.join(_ROLES)}; got {turn['role']!r}")
        content = _content(turn.get("content"), f"{place}: content")
        check_unicode(content, f"{key}[{index}]", where)
        rest = {name: entry for name, entry in turn.items() if name not in ("role", "content") and entry is not None}
        turns.append({"role": turn["role"], "content": content, **rest})
    if not turns or not any(turn["content"].strip() for turn in turns):
        raise Drop(f"blank {key}")
    return tuple(turns)


def _content(content: Any, place: str) -> str:
    """A message's text; a list of text parts is joined, anything that is no text is refused."""
    if isinstance(content, str):
        return content
    parts = messages_of(content)
    if parts is None:
        raise DataError(f"{place}: expected a string, got {_type(content)}")
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"{place}: expected text parts alone; images, audio and tool results are not implemented")
    return "".join(part["text"] for part in parts)


def shortest_form(turns: Messages, role: str) -> Text:
    """One bare turn of the expected role is its text; anything more stays a conversation, for a chat template."""
    if len(turns) == 1 and turns[0]["role"] == role and len(turns[0]) == 2:
        return turns[0]["content"]
    return turns


def check_unicode(text: str, key: str, where: str) -> None:
    """DataError where `text` cannot be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {key}: character {error.start} is half a surrogate pair, which is no text") from None


def keys_of(record: Mapping[str, Any]) -> str:
    """The first keys of a record, to be shown."""
    names = sorted(map(str, record))
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def roles_of(turns: Messages) -> str:
    """The roles of a conversation, to be shown."""
    return ", ".join(turn["role"] for turn in turns)


def _type(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"
