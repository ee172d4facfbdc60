"""Long texts in slices: the tokenizers package holds the interpreter's lock while it encodes, and Ctrl-C would wait.

A slice begins before the end of the one before it. Both encode what they share; where their tokens agree there, away
from both edges, the ids are joined. Where they do not (a text without any boundary, a rule that looks far), the answer
is None and the caller encodes the text as a whole. Knows backends and texts; never limits or processes
(bounded_tokens.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SLICE = 1 << 14  # characters: some 15 ms
OVERLAP = 1 << 11  # characters that two slices share
EDGE = 1 << 9  # characters at either end of what is shared in which they may differ
LEAST = 16  # tokens that must agree


@dataclass(frozen=True)
class _Slice:
    """Tokens of a part of the text; offsets count from the text's own beginning."""

    ids: list[int]
    starts: list[int]
    ends: list[int]

    def between(self, low: int, high: int) -> range:
        """Tokens that begin in [low, high)."""
        return range(bisect_left(self.starts, low), bisect_left(self.starts, high))

    def tokens(self, which: range) -> list[tuple[int, int, int]]:
        """(id, start, end) of each."""
        return [(self.ids[i], self.starts[i], self.ends[i]) for i in which]


def _slice(backend: Any, text: str, start: int, stop: int) -> _Slice:
    encoding = backend.encode(text[start:stop], add_special_tokens=False)
    offsets = encoding.offsets
    return _Slice(encoding.ids, [start + low for low, _ in offsets], [start + high for _, high in offsets])


def _next_start(part: _Slice, begun: int, stop: int) -> int | None:
    """Where a token of `part` begins, OVERLAP characters before its end."""
    wanted = max(stop - OVERLAP, begun + 1)
    at = bisect_left(part.starts, wanted)
    return part.starts[at] if at < len(part.starts) and part.starts[at] <= wanted + EDGE else None


def encode(text: str, backend: Any, rest: Callable[[], Any]) -> list[int] | None:
    """Token ids of `text`, no special token added, as backend.encode gives them; None where slices do not agree.

    rest(): the backend for all slices but the first, which puts no mark of a text's beginning before them."""
    ids: list[int] = []
    for part in _joined(text, backend, rest):
        if part is None:
            return None
        ids += part
    return ids


def _joined(text: str, backend: Any, rest: Callable[[], Any]) -> Iterator[list[int] | None]:
    """The ids of the text, piece by piece; None, as the last piece, where two slices do not agree."""
    start, stop = 0, min(SLICE, len(text))
    part, kept = _slice(backend, text, start, stop), 0
    while stop < len(text):
        following = _next_start(part, start, stop)
        if following is None:
            yield None
            return
        end = min(following + SLICE, len(text))
        after = _slice(rest(), text, following, end)
        ours, theirs = (piece.between(following + EDGE, stop - EDGE) for piece in (part, after))
        if len(ours) < LEAST or part.tokens(ours) != after.tokens(theirs):
            yield None
            return
        yield part.ids[kept : ours.start]
        part, kept, start, stop = after, theirs.start, following, end
    yield part.ids[kept:]
