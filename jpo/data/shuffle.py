"""A random order of [0, N) whose places are computed one by one: nothing of it is held, whatever N is.

A Feistel network permutes the numbers of 2h bits, the fewest that hold N; one that lands at N or above is sent through
again until it lands below (cycle walking), which leaves a permutation of [0, N). Sources: Luby, Rackoff, "How to
construct pseudorandom permutations", 1988 (the network); Black, Rogaway, "Ciphers with arbitrary finite domains", 2002
(cycle walking); the round function is the finalizer of splitmix64 (Steele, Lea, Flood, 2014). Knows numbers alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jpo.data.words import raw_words

_ROUNDS = 8  # 4 make a pseudorandom permutation of a pseudorandom round function; the halves are short here


class Shuffle:
    """The permutation of range(count) that (seed, stream) name; `places` gives any part of it.

    The domain holds less than 4 * count numbers, so that a place takes fewer than 4 walks on average."""

    def __init__(self, count: int, seed: int, *stream: int):
        self.count = count
        self._half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))  # bits of a half
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = raw_words(_ROUNDS, seed, *stream)

    def places(self, first: int, end: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(min(end, count) - first,) int64: what stands at the places first to end - 1 of the permutation."""
        values = self._pass(np.arange(first, min(end, self.count), dtype=np.uint64))
        while (outside := values >= self.count).any():
            values[outside] = self._pass(values[outside])
        return values.astype(np.int64)

    def _pass(self, values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """splitmix64's finalizer: every bit of the result depends on every bit of the value. Products wrap around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
