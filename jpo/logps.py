"""Log-likelihoods of label sequences and their gradients over arrays of logits, or of hidden states and a head.

Labels are shifted inside, as Hugging Face's: the logits at position t score the label at t + 1; positions whose label
is ignore_index are never read. Log-likelihoods are float64. -inf is probability 0; NaN or +inf in a scored row makes
its sequence NaN. Arrays are read where they lie (NumPy, __dlpack__, buffer protocol); nothing large is copied silently.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jpo import _core
from jpo.arrays import Array, as_array
from jpo.errors import JpoError

_KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "float64": 3}


def _floats(name: str, value: Any, dimensions: int, shape: str) -> Array:
    array = as_array(name, value)
    if not array.dtype.isnative:
        raise TypeError(
            f"{name}: expected native byte order, got {array.dtype}; convert it with {name}.astype({array.dtype.name!r})"
        )
    if array.dtype.name not in _KINDS:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {array.dtype}")
    if array.ndim != dimensions:
        raise JpoError(f"{name}: expected shape {shape}, got {array.shape}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise JpoError(
            f"{name}: expected a contiguous, aligned array, got strides {array.strides}; pass np.ascontiguousarray({name})"
        )
    if 0 in array.shape:
        raise JpoError(f"{name}: expected shape {shape} without empty axes, got {array.shape}")
    return array


def _raw(array: Array) -> tuple[Array, int]:
    """What the core reads: two-byte types as uint16, and the type's number."""
    kind = _KINDS[array.dtype.name]
    return (array.view(np.uint16) if kind in (1, 2) else array), kind


class _Scored:
    """Which rows are scored, by which targets, for which sequence."""

    def __init__(self, labels: Any, leading: tuple[int, ...], vocab: int, ignore_index: int):
        array = as_array("labels", labels)
        if array.dtype.kind not in "iu":
            raise TypeError(f"labels: expected integers, got {array.dtype}")
        if array.shape != leading:
            raise JpoError(f"labels: expected shape {leading} as the rows have, got {array.shape}")
        wide = array.astype(np.int64)
        targets = wide[:, 1:]
        mask = targets != ignore_index
        bad = mask & ((targets < 0) | (targets >= vocab))
        if bad.any():
            b, t = (int(part) for part in np.argwhere(bad)[0])
            raise JpoError(
                f"labels[{b}, {t + 1}] = {targets[b, t]} lies outside the vocabulary 0..{vocab - 1}; "
                f"to leave a position out, use ignore_index={ignore_index}"
            )
        self.counts = mask.sum(axis=1)
        if not self.counts.all():
            raise JpoError(f"labels: row {int(np.argmin(self.counts))} has no token to score after the shift by one")
        self.shape = mask.shape
        self.sequence, position = np.nonzero(mask)
        self.row = np.ascontiguousarray(self.sequence * leading[1] + position, dtype=np.int64)
        self.target = np.ascontiguousarray(targets[mask], dtype=np.int64)
        self.mask = mask

    def result(self, logps: Array, average: bool, token_logps: bool) -> Array:
        if token_logps:
            out = np.zeros(self.shape, dtype=np.float64)
            out[self.mask] = logps
            return out
        sums = np.bincount(self.sequence, weights=logps, minlength=len(self.counts))
        return sums / self.counts if average else sums

    def coefficients(self, grad: Any, average: bool) -> Array:
        weights = as_array("grad", grad, lists=True)
        if weights.dtype.kind not in "fiu":
            raise TypeError(f"grad: expected real numbers, got {weights.dtype}")
        if weights.shape != self.counts.shape:
            raise JpoError(f"grad: expected shape {self.counts.shape}, one value a sequence, got {weights.shape}")
        each = weights.astype(np.float64) / (self.counts if average else 1)
        return np.ascontiguousarray(each[self.sequence])


def sequence_logps(
    logits: Any, labels: Any, *, ignore_index: int = -100, average: bool = False, token_logps: bool = False
) -> Array:
    """Log-likelihoods of label sequences under logits.

    logits (B, T, V) float32 or float64 (float16 and bfloat16 are computed in float32); labels (B, T) integers. Returns
    (B,) float64: sums over the scored tokens, or their means with average=True; with token_logps=True instead (B, T -
    1), the log-likelihood of labels[:, 1:], 0 where ignored. ValueError or TypeError names the argument, what was
    expected and what came (a label outside the vocabulary, a sequence without any scored token, a non-contiguous array,
    ...).
    """
    z = _floats("logits", logits, 3, "(B, T, V)")
    scored = _Scored(labels, z.shape[:2], z.shape[2], ignore_index)
    data, kind = _raw(z)
    return scored.result(
        _core.logits_logps(data.reshape(-1, z.shape[2]), kind, scored.row, scored.target), average, token_logps
    )


def sequence_logps_grad(
    logits: Any, labels: Any, grad: Any, *, ignore_index: int = -100, average: bool = False, out: Any = None
) -> Array:
    """d loss / d logits, given grad (B,) = d loss / d sequence_logps.

    Returns (B, T, V): float64 for float64 logits, else float32; rows that are not scored are zero. out: where to write;
    logits itself is allowed (in place) where the types agree.
    """
    z = _floats("logits", logits, 3, "(B, T, V)")
    scored = _Scored(labels, z.shape[:2], z.shape[2], ignore_index)
    coefficients = scored.coefficients(grad, average)
    dtype = np.float64 if z.dtype == np.float64 else np.float32
    if out is None:
        result = np.zeros(z.shape, dtype=dtype)
    else:
        result = _output(out, z, dtype)
        silent = np.ones(z.shape[:2], dtype=bool)
        silent[:, :-1] = ~scored.mask
        result[silent] = 0
    data, kind = _raw(z)
    vocab = z.shape[2]
    _core.logits_grad(result.reshape(-1, vocab), data.reshape(-1, vocab), kind, scored.row, scored.target, coefficients)
    return result


def _output(out: Any, z: Array, dtype: Any) -> Array:
    result = _floats("out", out, 3, "(B, T, V)")
    if result.dtype != dtype or result.shape != z.shape:
        raise JpoError(
            f"out: expected {np.dtype(dtype)} of shape {z.shape}, got {result.dtype} of shape {result.shape}"
        )
    if not result.flags.writeable:
        raise JpoError("out: is read-only; pass a writable array")
    same = result.ctypes.data == z.ctypes.data and result.dtype == z.dtype
    if not same and np.may_share_memory(result, z):
        raise JpoError("out: overlaps logits; pass logits itself or an array of its own")
    return result


def _head(hidden: Any, weight: Any, labels: Any, ignore_index: int) -> tuple[Array, Array, _Scored]:
    h = _floats("hidden", hidden, 3, "(B, T, H)")
    w = _floats("weight", weight, 2, "(V, H)")
    if h.shape[2] != w.shape[1]:
        raise JpoError(f"weight: expected (V, {h.shape[2]}) as hidden has, got {w.shape}")
    if (h.dtype == np.float64) != (w.dtype == np.float64):
        raise TypeError(f"hidden and weight: expected both float64 or neither, got {h.dtype} and {w.dtype}")
    return h, w, _Scored(labels, h.shape[:2], w.shape[0], ignore_index)


def _gathered(h: Array, w: Array, scored: _Scored) -> tuple[Any, ...]:
    rows = np.ascontiguousarray(h.reshape(-1, h.shape[2])[scored.row], dtype=np.float32)
    data, kind = _raw(w)
    return rows, data, kind, scored.target.astype(np.int32), np.arange(len(rows), dtype=np.int32)


def _float64_tiles(rows: Array, w: Array) -> Any:
    """(logits (N, tile), first column) of each tile of the vocabulary, float64."""
    for first in range(0, len(w), 4096):
        yield rows @ w[first : first + 4096].T, first


def _float64_lse(rows: Array, w: Array) -> Array:
    lse = np.full(len(rows), -np.inf)
    for z, _ in _float64_tiles(rows, w):
        lse = np.logaddexp(lse, np.logaddexp.reduce(z, axis=1))
    return lse


def linear_logps(
    hidden: Any, weight: Any, labels: Any, *, ignore_index: int = -100, average: bool = False, token_logps: bool = False
) -> Array:
    """Log-likelihoods under softmax(hidden weight^T) without the logits ever standing in memory.

    hidden (B, T, H), weight (V, H), labels (B, T), shifted inside; both float64, or float32, float16, bfloat16 in any
    mix. Returns as sequence_logps does. Memory does not grow with rows x vocabulary.
    """
    h, w, scored = _head(hidden, weight, labels, ignore_index)
    if h.dtype == np.float64:
        rows = h.reshape(-1, h.shape[2])[scored.row]
        logps = np.einsum("nh,nh->n", rows, w[scored.target]) - _float64_lse(rows, w)
    else:
        logps = _core.head_logps(*_gathered(h, w, scored))
    return scored.result(logps, average, token_logps)


def linear_logps_grad(
    hidden: Any, weight: Any, labels: Any, grad: Any, *, ignore_index: int = -100, average: bool = False
) -> tuple[Array, Array]:
    """(d loss / d hidden (B, T, H), d loss / d weight (V, H)), given grad (B,) = d loss / d linear_logps.

    float64 for float64 inputs, else float32; rows that are not scored are zero.
    """
    h, w, scored = _head(hidden, weight, labels, ignore_index)
    c = scored.coefficients(grad, average)
    if h.dtype == np.float64:
        d_rows, d_weight = _float64_grad(h.reshape(-1, h.shape[2])[scored.row], w, scored.target, c)
    else:
        rows, data, kind, targets, index = _gathered(h, w, scored)
        d_rows, d_weight = _core.head_grad(rows, data, kind, targets, index, c)
    d_hidden = np.zeros(h.shape, dtype=d_rows.dtype)
    d_hidden.reshape(-1, h.shape[2])[scored.row] = d_rows
    return d_hidden, d_weight


def _float64_grad(rows: Array, w: Array, target: Array, c: Array) -> tuple[Array, Array]:
    lse = _float64_lse(rows, w)
    d_rows, d_weight = c[:, None] * w[target], np.zeros_like(w)
    for z, first in _float64_tiles(rows, w):
        p = np.exp(z - lse[:, None]) * -c[:, None]
        d_rows += p @ w[first : first + 4096]
        d_weight[first : first + 4096] += p.T @ rows
    np.add.at(d_weight, target, c[:, None] * rows)
    return d_rows, d_weight
