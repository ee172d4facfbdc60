"""Which comparisons to ask next: the next batch out of a pool, by chance, by small margins, or by a D-optimal design.

A pair is a row of features, the difference of its two items' vectors, and a margin D, by which the model prefers the
first item: p = sigmoid(D) is the model's probability that the first is chosen. An answer to a pair x tells about a
linear reward what the information matrix p (1 - p) x x^T says; `dopt` takes, one by one, the pairs that make the
determinant of the sum over all answers the largest (arXiv 2502.04354, its past-aware design). Everything is a pure
function of its arguments and the seed. Knows arrays; never records, texts or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from jpo.data.batches import permutation
from jpo.errors import JpoError

Strategy = Literal["random", "margin", "dopt"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
RIDGE = 0.1  # precision of the linear reward's weights before any answer, for features of mean squared norm 1
_NEWTON_STEPS = 50
_TOLERANCE = 1e-9

Array = np.ndarray[Any, np.dtype[np.float64]]


def probability(margins: Any) -> Array:
    """sigmoid(D) of margins (N,), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(margins, dtype=np.float64))))


def scaled(features: Any) -> Array:
    """Features (N, H) float64 divided by the root of their rows' mean squared norm, so that a ridge means the same for
    every model. Features that are all 0 stay 0."""
    x = _matrix(features)
    root = float(np.sqrt(np.mean(np.sum(x * x, axis=1)))) if len(x) else 0.0
    return x / root if root > 0 else x


def fit_head(features: Any, answers: Any, ridge: float = RIDGE) -> Array:
    """Weights w (H,) of the linear reward that explains the answers best: Bradley-Terry's model with a Gaussian prior.

    features (M, H): differences of pairs; answers (M,): 1 where the first item was chosen, 0 where the second, 0.5 for
    a tie. Minimizes sum of cross entropies of sigmoid(x w) + ridge / 2 |w|^2 by Newton's method, in the row space of
    the features, where the minimum lies. No answers give w = 0.
    """
    x, y = _matrix(features), np.asarray(answers, dtype=np.float64)
    if y.shape != (len(x),) or not ((y >= 0) & (y <= 1)).all():
        raise JpoError(f"answers: expected ({len(x)},) numbers from 0 to 1, got shape {y.shape}")
    _check_ridge(ridge)
    basis = np.linalg.qr(x.T)[0] if len(x) < x.shape[1] else None  # (H, M)
    z = x if basis is None else x @ basis
    w = np.zeros(z.shape[1])
    loss = _head_loss(z, y, w, ridge)
    for _ in range(_NEWTON_STEPS if len(x) else 0):
        p = probability(z @ w)
        gradient = z.T @ (p - y) + ridge * w
        hessian = (z * (p * (1 - p))[:, None]).T @ z + ridge * np.eye(len(w))
        step, length = np.linalg.solve(hessian, gradient), 1.0
        while (after := _head_loss(z, y, w - length * step, ridge)) > loss and length > _TOLERANCE:
            length /= 2
        w, before, loss = w - length * step, loss, after
        if before - loss <= _TOLERANCE * max(1.0, loss):
            break
    return w if basis is None else np.asarray(basis @ w)


def _head_loss(z: Array, y: Array, w: Array, ridge: float) -> float:
    d = z @ w
    return float(np.sum(np.logaddexp(0, d) - y * d) + ridge / 2 * (w @ w))


def next_batch(
    strategy: str,
    count: int,
    margins: Any,
    features: Any = None,
    *,
    answered: Sequence[int] = (),
    seed: int = 0,
    ridge: float = RIDGE,
) -> list[int]:
    """Places of the `count` pairs to ask next, in their order; all that are left where those are fewer.

    margins: D (N,) of all pairs, asked ones too; features (N, H), for dopt alone. answered: places that are not asked
    again; dopt counts what they told. Equal choices are settled by chance, by the seed. JpoError names the argument.
    """
    if strategy not in STRATEGIES:
        raise JpoError(f"strategy: expected one of {', '.join(STRATEGIES)}; got {strategy!r}")
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise JpoError(f"count: expected a positive integer, got {count!r}")
    _check_ridge(ridge)
    d = np.asarray(margins, dtype=np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise JpoError(f"margins: expected finite numbers of shape (N,), got shape {d.shape} with NaN or infinity"
                       if d.ndim == 1 else f"margins: expected shape (N,), got {d.shape}")  # fmt: skip
    past = np.asarray(answered, dtype=np.int64)
    if len(past) and not (0 <= past.min() and past.max() < len(d)):
        raise JpoError(f"answered: expected places from 0 to {len(d) - 1}, got {past.min()} to {past.max()}")
    free = np.ones(len(d), dtype=bool)
    free[past] = False
    places = permutation(len(d), seed)
    places = places[free[places]]
    if strategy == "margin":
        places = places[np.argsort(np.abs(d[places]), kind="stable")]
    elif strategy == "dopt":
        x = _matrix(features)
        if len(x) != len(d):
            raise JpoError(f"features: expected ({len(d)}, H) as margins has, got {x.shape}")
        p = probability(d)
        roots = x * np.sqrt(p * (1 - p))[:, None]
        places = places[greedy_log_det(roots[places], min(int(count), len(places)), roots[past], ridge)]
    return [int(place) for place in places[:count]]


def greedy_log_det(roots: Array, count: int, past: Array, ridge: float) -> list[int]:
    """`count` rows of `roots` (N, H), each the one that adds most to log det(ridge I + sum of r r^T of those taken).

    past (M, H): rows that count as taken before. With A the inverse of the matrix, a row adds log(1 + r^T A r); taking
    one changes A by Sherman and Morrison's formula and every r^T A r by one product: N H + H^2 operations a row.
    """
    x = np.array(roots, dtype=np.float64)
    inverse = np.linalg.inv(ridge * np.eye(x.shape[1]) + past.T @ past)
    gains = np.einsum("nh,nh->n", x @ inverse, x)
    taken: list[int] = []
    for _ in range(count):
        best = int(np.argmax(gains))
        taken.append(best)
        direction = inverse @ x[best]
        whole = 1 + float(x[best] @ direction)
        gains = np.maximum(gains - (x @ direction) ** 2 / whole, 0)
        inverse -= np.outer(direction, direction) / whole
        gains[taken] = -1.0
    return taken


def ask_in_rounds(
    strategy: str,
    count: int,
    features: Any,
    ask: Callable[[list[int]], Sequence[float]],
    *,
    turns: int,
    seed: int = 0,
    ridge: float = RIDGE,
) -> list[tuple[list[int], Array]]:
    """`turns` rounds of asking, answering and fitting a linear reward: (places asked so far, its weights) after each.

    ask(places): the answers to those pairs, 1, 0 or 0.5 as fit_head takes them. The first round knows no answer.
    """
    x = _matrix(features)
    asked: list[int] = []
    answers: list[float] = []
    w = np.zeros(x.shape[1])
    result = []
    for _ in range(turns):
        batch = next_batch(strategy, count, x @ w, x, answered=asked, seed=seed, ridge=ridge)
        answers += list(ask(batch)) if batch else []
        asked = asked + batch
        w = fit_head(x[asked], answers, ridge)
        result.append((asked, w))
    return result


def _matrix(features: Any) -> Array:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        what = "NaN or infinity" if x.ndim == 2 else f"shape {x.shape}"
        raise JpoError(f"features: expected finite numbers of shape (N, H), got {what}")
    return x


def _check_ridge(ridge: float) -> None:
    if not 0 < ridge < float("inf"):
        raise JpoError(f"ridge: expected a positive number, got {ridge!r}")
