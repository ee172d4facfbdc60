"""Keys and values of many streams in pages, and passes over rows that join them.

A path through the cache is a list of (first row, rows): pages are handed out one by one and taken back in any order, so
that no stream needs neighbouring memory. What a path gives depends on its own pages' fill alone, never on their place.
Knows rows; never requests, samples or texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from jpo import _core
from jpo.errors import JpoError
from jpo.formats import BLOCKS

CacheType = Literal["float32", "bfloat16", "float16", "q8_0"]
CACHE_TYPES: tuple[CacheType, ...] = get_args(CacheType)
_STORED: dict[str, str] = dict(zip(CACHE_TYPES, ("F32", "BF16", "F16", "Q8_0"), strict=True))  # as BLOCKS names them
PAGE = 64  # rows: keys of one page are one tile of attention
Range = tuple[int, int]  # first row of the cache, rows


def pages_of(rows: int) -> int:
    """Pages that so many rows take."""
    return -(-rows // PAGE)


def check_type(dtype: str) -> None:
    """JpoError where keys and values cannot be stored so in any model."""
    if dtype not in _STORED:
        raise JpoError(f"cache_dtype: expected one of {', '.join(CACHE_TYPES)}, got {dtype!r}")


def _row(config: Any, dtype: str) -> tuple[int, int]:
    """(values, bytes) of one token's keys in one layer. JpoError where the type is unknown or a head no whole
    blocks."""
    check_type(dtype)
    block, size = BLOCKS[_STORED[dtype]]
    if config["head_dim"] % block:
        raise JpoError(
            f"cache_dtype: {dtype} stores blocks of {block} values, but this model's heads have {config['head_dim']}; "
            'use "bfloat16" or "float32"'
        )
    values = int(config["num_key_value_heads"] * config["head_dim"])
    return values, values // block * size


def row_bytes(config: Any, dtype: str = "float32") -> int:
    """Bytes of one token's keys and values in all layers."""
    return int(2 * config["num_hidden_layers"] * _row(config, dtype)[1])


@dataclass(frozen=True)
class Piece:
    """Tokens that follow one another on one path. path: ranges that hold all keys before them and their own."""

    tokens: Sequence[int]
    position: int  # of the first
    rows: Sequence[int]  # of the cache, where their keys go
    path: Sequence[Range]


class Cache:
    """`pages` pages for one model. A page beyond them takes the padding of short passes.

    dtype: how keys and values are stored; whatever it is, they are multiplied in float32. Memory is the system's to
    give when a page is first written; pages that were used before are handed out first. JpoError where so much cannot
    be had."""

    def __init__(self, lm: Any, pages: int, dtype: str = "float32"):
        values, size = _row(lm.config, dtype)
        self.lm, self.pages, self._stored = lm, pages, _STORED[dtype]
        rows = (lm.config["num_hidden_layers"], (pages + 1) * PAGE)
        try:
            self.k, self.v = (
                np.empty((*rows, values), np.float32) if dtype == "float32" else np.empty((*rows, size), np.uint8)
                for _ in "kv"
            )
        except MemoryError:
            each = row_bytes(lm.config, dtype)
            raise JpoError(
                f"keys and values of {pages * PAGE} tokens ({pages * PAGE * each / 2**30:.1f} GiB as {dtype}) do not "
                "fit into memory: ask for fewer or shorter samples"
                + ("" if dtype != "float32" else ', or for cache_dtype="bfloat16"')
            ) from None
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
        self.decode(tokens, positions, places, segments, ranges, (), adapter, reach)

    def decode(
        self, tokens: Any, positions: Any, rows: Any, segments: Any, ranges: Any, wanted: Any, adapter: bool, reach: int
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(n, V) logits of the rows `wanted` of one pass: tokens (T), positions (T), rows (T) of the cache where their
        keys go; segments (S, 4): first token, tokens, first range, ranges; ranges (n, 2): rows of the cache."""
        indices = [np.asarray(part, dtype=np.int32) for part in (tokens, positions, rows, segments, ranges, wanted)]
        self.lm._checkpoint.check_files()
        return self.lm._core.decode(self.k, self.v, *indices, adapter, reach, self._stored)  # type: ignore[no-any-return]

    def logits(self, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(n, V) of rows of the last pass, in its order."""
        return self.lm._core.logits(np.asarray(rows, dtype=np.int32))  # type: ignore[no-any-return]
