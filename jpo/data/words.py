"""Random words by place: the one source of randomness of data orders. Knows numbers alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from jpo.errors import JpoError

_MASK = (1 << 64) - 1


def raw_words(count: int, seed: int, *stream: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """(count,) uint64 words of the counter-based generator Philox at (seed, stream): the same on every NumPy version,
    which promises that for the words of its generators but not for its shuffles."""
    counter = [0, *(part & _MASK for part in stream)]
    if len(counter) > 4:
        raise JpoError(f"stream: expected at most 3 numbers, got {len(stream)}")
    counter += [0] * (4 - len(counter))
    key = np.array([seed & _MASK, (seed >> 64) & _MASK], dtype=np.uint64)
    return np.random.Philox(counter=np.array(counter, dtype=np.uint64), key=key).random_raw(count)
