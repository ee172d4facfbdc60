"""Intervals and paired comparisons. Knows numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jpo.data.words import raw_words

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


def t_quantile(degrees: int) -> float:
    """The 97.5 % point of Student's t, from the integral of its density over angles: t = sqrt(v) tan(a)."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)

    def above_half(angle: float) -> float:
        at = (nodes + 1) * angle / 2
        return scale * float(weights @ np.cos(at) ** (degrees - 1)) * angle / 2

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above_half(middle) < 0.475 else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def t_interval(values: Sequence[float]) -> dict[str, Any]:
    """{mean, low, high, n}: Student's 95 % interval of a mean; low and high are None for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean()) if len(array) else None
    if n < 2 or mean is None:
        return {"mean": mean, "low": None, "high": None, "n": n}
    half = t_quantile(n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def share_interval(values: Sequence[float]) -> dict[str, Any]:
    """Student's interval of a mean of shares, kept within 0 and 1: few values give wide ones."""
    found = t_interval(values)
    if found["low"] is not None:
        found |= {"low": max(found["low"], 0.0), "high": min(found["high"], 1.0)}
    return found


FEWEST = 10  # verdicts for a fit of two terms


def length_controlled(
    scores: Sequence[float], lengths: Sequence[int], baseline_lengths: Sequence[int], ridge: float = 0.01
) -> dict[str, Any]:
    """The win-rate that a logistic model predicts at equal lengths: {win_rate, low, high, length_effect, n, problem}.

    After AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475): P(win on x) = sigmoid(theta + phi tanh(d_x / std(d))),
    with d = length - baseline length in characters; scores in [0, 1] (a tie is 1/2) are its targets; the result is
    sigmoid(theta). Left out is their term of instruction difficulty, which is fit over the annotations of many models,
    and the annotations of gamed models that they add. Penalty: ridge / 2 (theta^2 + phi^2), as their C = 100 weighs it.
    The interval comes from the sandwich estimate of theta's variance. Where the fit cannot be made, `problem` says why
    and the other values are None; where every verdict is the same, the win-rate is theirs at any length.
    """
    y = np.asarray(scores, dtype=np.float64)
    n = len(y)
    none = {"win_rate": None, "low": None, "high": None, "length_effect": None, "n": n}
    if n == 0:
        return none | {"problem": "no verdict"}
    d = np.asarray(lengths, dtype=np.float64) - np.asarray(baseline_lengths, dtype=np.float64)
    spread = d.std(ddof=1) if n > 1 else 0.0
    if n > 1 and (y == y[0]).all() and y[0] in (0.0, 1.0):
        return none | {"win_rate": float(y[0]), "problem": "every verdict is the same: no effect of length to tell"}
    if spread > 0 and n < FEWEST:
        return none | {"problem": f"{n} verdicts are too few for a fit"}
    if spread > 0 and _split(y, d):
        return none | {"problem": "length alone splits wins from losses: nothing can be said of equal lengths"}
    x = np.stack([np.ones(n), np.tanh(d / spread) if spread > 0 else np.zeros(n)], axis=1)
    weights, curvature = _fit_logistic(x, y, ridge)
    residuals = x * (y - _sigmoid(x @ weights))[:, None]
    inverse = np.linalg.inv(curvature)
    half = _Z95 * math.sqrt((inverse @ (residuals.T @ residuals) @ inverse)[0, 0])
    low, middle, high = (float(_sigmoid(weights[0] + step)) for step in (-half, 0.0, half))
    found = {"win_rate": middle, "low": low, "high": high, "length_effect": float(weights[1]), "n": n}
    return found | {"problem": None}


def _split(y: Any, d: Any) -> bool:
    """Whether one length tells every win from every loss (ties on neither side): a fit then has no finite optimum."""
    wins, losses = d[y > 0.5], d[y < 0.5]
    if (y == 0.5).any() or not len(wins) or not len(losses):
        return False
    return bool(wins.min() >= losses.max() or losses.min() >= wins.max())


def _sigmoid(x: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -x))


def _fit_logistic(x: Any, y: Any, ridge: float) -> tuple[Any, Any]:
    """(weights, Hessian) of the ridge-penalized logistic fit by Newton's method, steps halved until the loss falls."""

    def loss(weights: Any) -> float:
        z = x @ weights
        return float((np.logaddexp(0.0, z) - y * z).sum() + ridge / 2 * weights @ weights)

    weights = np.zeros(x.shape[1])
    for _ in range(100):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) + ridge * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if np.abs(step).max() < 1e-10:
            break
    return weights, curvature
