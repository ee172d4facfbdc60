"""Tokens to text while they come: what is certain is given out, what could still change waits.

A character waits for its last byte, and the beginning of a stop string for its end. Knows one stream's tokens; never
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BEFORE = 16  # tokens of the prompt that decide how its continuation begins
_OPEN = "\ufffd"  # what a decoder shows for a character that lacks bytes


class TextStream:
    """The text that tokens add to a prompt's, up to the first of the stop strings."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._tokens = list(prompt[-_BEFORE:])
        self._start = self._read = len(self._tokens)  # decoded together: [start, read) are known, the rest is new
        self._held = ""

    def push(self, token_id: int) -> tuple[str, bool]:
        """(what is certain by now and was not given out before, whether a stop string stands behind it)."""
        self._tokens.append(token_id)
        self._held += self._fresh(final=False)
        return self._released()

    def end(self) -> tuple[str, bool]:
        """The same for what still waits, when no token follows."""
        self._held += self._fresh(final=True)
        text, stopped = self._released()
        return (text, True) if stopped else (text + self._held, False)

    def _fresh(self, final: bool) -> str:
        before, tail = self._tokens[max(0, self._start - _BEFORE) : self._start], self._tokens[self._start :]
        if not tail:
            return ""
        whole = self._tokenizer.decode_continuation(before, tail)
        if whole.endswith(_OPEN) and not final:
            return ""
        known = self._tokenizer.decode_continuation(before, tail[: self._read - self._start])
        self._start, self._read = self._read, len(self._tokens)
        return str(whole[len(known) :])

    def _released(self) -> tuple[str, bool]:
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        text = self._held[: len(self._held) - keep]
        self._held = self._held[len(text) :]
        return text, False


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that could begin the stop string."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:count]):
            return count
    return 0
