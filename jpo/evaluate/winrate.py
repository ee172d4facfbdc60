"""Win-rates against gold responses, (win + tie / 2) / total, and the verdict caches that they are read from.

A verdict cache is JSON: {model: {"instruction<SEP><SEP><SEP><SEP>gold<SEP><SEP><SEP><SEP>output": verdict}} with the
verdicts "model", "gold" and "equal". Knows verdicts; never judges.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from jpo.errors import DataError
from jpo.evaluate.statistics import wilson

SEPARATOR = "<SEP><SEP><SEP><SEP>"
_SCORES = {"model": 1.0, "gold": 0.0, "equal": 0.5}


@dataclass(frozen=True)
class WinRate:
    """Counts of verdicts; `scores` holds each item's (1, 0 or 1/2) by its instruction and gold, for paired comparisons;
    `longer` counts outputs with more characters than gold."""

    wins: int
    losses: int
    ties: int
    longer: int
    scores: dict[tuple[str, str], float]

    @property
    def total(self) -> int:
        """Items judged."""
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float:
        """(win + tie / 2) / total."""
        return (self.wins + self.ties / 2) / self.total

    def to_dict(self) -> dict[str, Any]:
        """Counts, unrounded rate, 95 % interval and the share longer than gold."""
        low, high = wilson(self.wins + self.ties / 2, self.total)
        counts = {"wins": self.wins, "losses": self.losses, "ties": self.ties, "total": self.total}
        return counts | {"win_rate": self.rate, "low": low, "high": high, "longer_than_gold": self.longer / self.total}


def _unique(path: str) -> Any:
    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DataError(f"{path}: the key {key[:80]!r} stands twice")
            found[key] = value
        return found

    return hook


def read_verdicts(path: str | os.PathLike[str]) -> dict[str, WinRate]:
    """model -> WinRate of a verdict cache; DataError names the file, the model and the malformed key or verdict."""
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            cache = json.load(file, object_pairs_hook=_unique(name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(cache, dict) or not cache:
        raise DataError(f"{name}: expected a mapping of models to verdicts, got {type(cache).__name__}")
    return {model: _win_rate(name, model, verdicts) for model, verdicts in cache.items()}


def _win_rate(name: str, model: str, verdicts: Any) -> WinRate:
    if not isinstance(verdicts, dict) or not verdicts:
        raise DataError(f"{name}: model {model!r}: expected a mapping of items to verdicts, got {verdicts!r:.80}")
    counts = dict.fromkeys(_SCORES, 0)
    scores: dict[tuple[str, str], float] = {}
    longer = 0
    for key, verdict in verdicts.items():
        parts = key.split(SEPARATOR)
        if len(parts) != 3:
            raise DataError(
                f"{name}: model {model!r}: key {key[:80]!r} has {len(parts)} parts; expected instruction, gold and output, "
                f"separated by {SEPARATOR}"
            )
        if not isinstance(verdict, str) or verdict not in _SCORES:
            raise DataError(
                f"{name}: model {model!r}: verdict {verdict!r} of {key[:80]!r} is none of model, gold, equal"
            )
        counts[verdict] += 1
        scores[parts[0], parts[1]] = _SCORES[verdict]
        longer += len(parts[2]) > len(parts[1])
    return WinRate(counts["model"], counts["gold"], counts["equal"], longer, scores)
