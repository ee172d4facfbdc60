"""Intervals and paired comparisons. Knows numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jpo.data.batches import raw_words

_Z95 = 1.959963984540054  # the normal's 97.5 % point


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_difference(
    a: Sequence[float], b: Sequence[float], draws: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Mean of a - b over paired items, its 95 % percentile interval, and the share of draws on the other side of 0."""
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    means = np.empty(draws)
    for first in range(0, draws, 500):
        count = min(500, draws - first)
        picks = (raw_words(count * len(d), seed, first) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        means[first : first + count] = d[(picks * len(d)).astype(np.int64)].reshape(count, len(d)).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    against = float((means <= 0).mean()) if d.mean() > 0 else float((means >= 0).mean())
    return {
        "difference": float(d.mean()),
        "low": float(low),
        "high": float(high),
        "p": min(1.0, 2 * against),
        "n": len(d),
    }
