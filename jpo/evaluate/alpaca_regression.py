"""AlpacaEval 2's own length-controlled win-rate (Dubois et al. 2024, arXiv 2404.04475), after its package's regression.

P(win) = sigmoid(theta + phi tanh(d / std(d)) + psi difficulty), with d the baseline's length minus the model's in
characters: a logistic regression with an L1 penalty on preferences from 0 to 1, its strength C chosen among ten by
five-fold cross-validation, predicted at d = 0. Three forms, as the package names them: `length_controlled_minimal` has
no term of difficulty, `length_controlled_noreg` has it, `length_controlled_v1` (the leaderboard's) adds the annotations
of a gamed baseline with a small weight. Knows annotations and numbers; runs nothing of the package.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo.data.readers import read_text
from jpo.errors import DataError

Array = np.ndarray[Any, np.dtype[np.float64]]
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # of the data against the penalty: scikit-learn's ten
_GAMED_WEIGHT = 0.2 / 2  # lambda of the form v1, for two gamed baselines
_SWEEPS = 500  # of coordinate descent at most; three weights settle in some ten
_PRECISION = 1e-9  # of a weight
_LEAST = 1e-15  # of a probability in the validation's loss


@dataclass(frozen=True)
class Difficulty:
    """What AlpacaEval knows of its instructions: how difficult each is, by its number; and, where the file has them,
    the annotations of gamed baselines: (n, 3) rows (length term before tanh, difficulty, not gamed) and their
    preferences."""

    of: Mapping[int, float]
    gamed: Array | None = None
    preferences: Array | None = None


def read_difficulty(path: str | os.PathLike[str]) -> Difficulty:
    """AlpacaEval's instruction_difficulty.csv (index, instruction_difficulty), or its df_gamed.csv, which also holds
    preference, std_delta_len and not_gamed_baseline. DataError names the file, the line and the column."""
    name = os.fspath(path)
    of: dict[int, float] = {}
    gamed: list[tuple[float, float, float]] = []
    preferences: list[float] = []
    with io.StringIO(read_text(name), newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        if columns and "index" not in columns:
            columns[0] = "index"  # pandas leaves the index without a name
            reader.fieldnames = columns
        if "instruction_difficulty" not in columns:
            raise DataError(f"{name}: expected the columns index and instruction_difficulty, got {columns[:8]}")
        whole = {"preference", "std_delta_len", "not_gamed_baseline"} <= set(columns)
        for number, row in enumerate(reader, 2):
            try:
                index, difficulty = int(float(row["index"])), float(row["instruction_difficulty"])
                of.setdefault(index, difficulty)
                if whole:
                    gamed.append((float(row["std_delta_len"]), difficulty, float(row["not_gamed_baseline"] == "True")))
                    preferences.append(float(row["preference"]))
            except (TypeError, ValueError) as error:
                raise DataError(f"{name}, line {number}: {error}") from None
    if not of:
        raise DataError(f"{name}: holds no instruction")
    known = np.isfinite(preferences) if whole else np.zeros(0, dtype=bool)
    return Difficulty(of, np.array(gamed)[known] if whole else None, np.array(preferences)[known] if whole else None)


def alpaca_length_controlled(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    indices: Sequence[int] | None = None,
    difficulty: Difficulty | None = None,
) -> dict[str, Any]:
    """{length_controlled_winrate, lc_standard_error, glm, weights, problem}: percentages, as the package gives them.

    preferences: 0 (the baseline) to 1 (the model), None where the annotator failed; lengths in characters. indices: the
    instructions' numbers in the evaluation set, for `difficulty`; default: their places. problem: why there is no
    figure, else None. DataError for an instruction whose difficulty is not known.
    """
    glm = "minimal" if difficulty is None else "noreg" if difficulty.gamed is None else "v1"
    result: dict[str, Any] = {"length_controlled_winrate": None, "lc_standard_error": None, "weights": None}
    result |= {"glm": f"length_controlled_{glm}", "problem": None}
    scores = np.array([np.nan if p is None else p for p in preferences], dtype=np.float64)
    known = np.isfinite(scores)
    delta = np.asarray(baseline_lengths, dtype=np.float64) - np.asarray(lengths, dtype=np.float64)
    spread = float(delta.std(ddof=1)) if len(delta) > 1 else 0.0
    if known.sum() < 2 * FOLDS:
        return result | {"problem": f"{int(known.sum())} verdicts are too few for a fit in {FOLDS} folds"}
    if spread == 0:
        return result | {
            "problem": "every output is longer than the baseline's by the same: no effect of length to tell"
        }
    terms = [np.tanh(delta / spread), np.ones(len(delta))]  # in the package's order
    if difficulty is not None:
        terms.insert(1, _difficulties(difficulty, range(len(delta)) if indices is None else indices))
    x = np.stack(terms, axis=1)
    weights = _fitted(x[known], scores[known], difficulty)
    at_equal = x.copy()
    at_equal[:, 0] = 0.0
    predicted = _sigmoid(at_equal @ weights)
    names = ("length", "theta") if difficulty is None else ("length", "difficulty", "theta")
    return result | {
        "length_controlled_winrate": float(100 * predicted.mean()),
        "lc_standard_error": float(100 * predicted.std(ddof=1) / math.sqrt(len(predicted))),
        "weights": {name: float(value) for name, value in zip(names, weights, strict=True)},
    }


def _difficulties(difficulty: Difficulty, indices: Sequence[int] | range) -> Array:
    missing = [index for index in indices if index not in difficulty.of]
    if missing:
        raise DataError(
            f"the file of difficulties lacks instruction {missing[0]} (and {len(missing) - 1} more); is it of this "
            "evaluation set?"
        )
    return np.array([difficulty.of[index] for index in indices], dtype=np.float64)


def _fitted(x: Array, y: Array, difficulty: Difficulty | None) -> Array:
    """The weights at the strength that validates best, over all rows; those of gamed baselines first, as in the
    package."""
    importance = np.ones(len(y))
    if difficulty is not None and difficulty.gamed is not None and difficulty.preferences is not None:
        own = difficulty.gamed
        gamed = np.stack([np.tanh(own[:, 0]), own[:, 1], own[:, 2]], axis=1)
        x = np.concatenate([gamed, x])
        y = np.concatenate([difficulty.preferences, y])
        importance = np.concatenate([np.where(own[:, 2] > 0, 1.0, _GAMED_WEIGHT), importance])
    fold = np.arange(len(y))[::-1] % FOLDS  # scikit-learn's GroupKFold over groups of one size
    losses = np.zeros(len(STRENGTHS))
    for test in (fold == number for number in range(FOLDS)):
        start = np.zeros(x.shape[1])
        for place, strength in enumerate(STRENGTHS):
            start = _lasso(x[~test], y[~test], importance[~test], float(strength), start)
            losses[place] += _loss(x[test] @ start, y[test], importance[test])
    return _lasso(x, y, importance, float(STRENGTHS[int(losses.argmin())]), np.zeros(x.shape[1]))


def _loss(z: Array, y: Array, importance: Array) -> float:
    p = np.clip(_sigmoid(z), _LEAST, 1 - _LEAST)
    return float(-np.mean(importance * (y * np.log(p) + (1 - y) * np.log(1 - p))))


def _lasso(x: Array, y: Array, importance: Array, strength: float, start: Array) -> Array:
    """argmin over w of |w|_1 + C sum importance (log(1 + e^z) - y z), z = x w: coordinate descent, each coordinate by
    Newton's steps, halved until the objective falls."""
    weights = start.copy()
    z = x @ weights

    def objective(z: Array, weights: Array) -> float:
        return float(np.abs(weights).sum() + strength * (importance * (np.logaddexp(0.0, z) - y * z)).sum())

    value = objective(z, weights)
    for _ in range(_SWEEPS):
        before = weights.copy()
        for j in range(len(weights)):
            p = _sigmoid(z)
            slope = strength * float((importance * (p - y)) @ x[:, j])
            curve = strength * float((importance * p * (1 - p)) @ x[:, j] ** 2) + 1e-12
            step = _shrunk(weights[j] - slope / curve, 1.0 / curve) - weights[j]
            while abs(step) > _PRECISION / 10:
                tried = weights.copy()
                tried[j] += step
                moved = z + step * x[:, j]
                if (lower := objective(moved, tried)) <= value:
                    weights, z, value = tried, moved, lower
                    break
                step /= 2
        if np.abs(weights - before).max() < _PRECISION:
            break
    return weights


def _shrunk(value: float, by: float) -> float:
    return math.copysign(max(abs(value) - by, 0.0), value)


def _sigmoid(z: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -z))
