"""Keys and values of many streams in pages, and passes over rows that join them.

A path through the cache is a list of (first row, rows): pages are handed out one by one and taken back in any order, so
that no stream needs neighbouring memory. What a path gives depends on its own pages' fill alone, never on their place.
Knows rows; never requests, samples or texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo import _core

PAGE = 64  # rows: keys of one page are one tile of attention
Range = tuple[int, int]  # first row of the cache, rows


def pages_of(rows: int) -> int:
    """Pages that so many rows take."""
    return -(-rows // PAGE)


def row_bytes(config: Any) -> int:
    """Bytes of one token's keys and values in all layers (float32)."""
    return int(8 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"])


@dataclass(frozen=True)
class Piece:
    """Tokens that follow one another on one path. path: ranges that hold all keys before them and their own."""

    tokens: Sequence[int]
    position: int  # of the first
    rows: Sequence[int]  # of the cache, where their keys go
    path: Sequence[Range]


class Cache:
    """`pages` pages for one model. A page beyond them takes the padding of short passes.

    Memory is taken when a page is first written; pages that were used before are handed out first."""

    def __init__(self, lm: Any, pages: int):
        c = lm.config
        shape = (c["num_hidden_layers"], (pages + 1) * PAGE, c["num_key_value_heads"] * c["head_dim"])
        self.lm, self.pages = lm, pages
        self.k, self.v = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        self._free = list(range(pages))[::-1]
        self._padding = pages * PAGE
        self.small = _core.small_batch_rows()  # products of up to so many rows sum as one row does, larger ones alike

    @property
    def used(self) -> int:
        """Pages that are handed out."""
        return self.pages - len(self._free)

    def take(self) -> int:
        """The first row of a page; IndexError where none is left."""
        return self._free.pop() * PAGE

    def give_back(self, first_rows: Sequence[int]) -> None:
        """Pages by their first rows."""
        self._free.extend(row // PAGE for row in first_rows)

    def run(self, pieces: Sequence[Piece], *, adapter: bool, reach: int, alike: bool = False) -> None:
        """One pass over the pieces; `logits` then reads any of its rows. reach: positions that the streams may come to.

        alike: a pass of few rows is padded, so that its rows are summed as in a pass of many."""
        pieces = list(pieces)
        rows = sum(len(piece.tokens) for piece in pieces)
        if alike and rows <= self.small:
            count = min(self.small + 1 - rows, PAGE, int(self.lm.config["max_position_embeddings"]))
            place = range(self._padding, self._padding + count)
            pieces.append(Piece([pieces[0].tokens[0]] * count, 0, place, [(self._padding, count)]))
        segments, ranges, first = list[tuple[int, ...]](), list[Range](), 0
        for piece in pieces:
            segments.append((first, len(piece.tokens), len(ranges), len(piece.path)))
            ranges += piece.path
            first += len(piece.tokens)
        tokens = np.concatenate([np.asarray(piece.tokens, dtype=np.int32) for piece in pieces])
        places = np.concatenate([np.asarray(piece.rows, dtype=np.int32) for piece in pieces])
        positions = np.concatenate([np.arange(p.position, p.position + len(p.tokens), dtype=np.int32) for p in pieces])
        indices = [np.asarray(part, dtype=np.int32) for part in (segments, ranges, ())]
        self.lm._checkpoint.check_files()
        self.lm._core.decode(self.k, self.v, tokens, positions, places, *indices, adapter, reach)

    def logits(self, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(n, V) of rows of the last pass, in its order."""
        return self.lm._core.logits(np.asarray(rows, dtype=np.int32))  # type: ignore[no-any-return]
