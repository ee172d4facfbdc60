"""Preference objectives over sequence log-likelihoods, with analytic gradients (C core, float64).

s = h(log p - log p_ref), D = s_w - s_l, b = beta, e = label_smoothing, n = scored tokens, sg = sigmoid. Sources:
sigmoid and label smoothing (DPO, 2305.18290; cDPO), JPO (2404.00530, equation 3: the same loss over joint
log-likelihoods), robust (2403.00409), hinge (SLiC, 2305.10425), ipo (2310.12036), exo_pair (2402.00856), nca_pair
(2402.05369), bco_pair (2404.04656), sppo_hard (2405.00675), apo_zero and apo_down (2408.06266), discopop (2406.08414),
aot and aot_unpaired (2406.05882), kto (2402.01306), dpo_rk and dpo_davidson (2409.17431: DPO under Rao and Kupper's and
Davidson's models of ties), simpo (2405.14734), orpo (2403.07691), rpo (2402.10958), iopo (2411.06208), f-divergences
(2309.16240), WPO's pair weights (2406.11827).

Knows numbers; never models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from jpo import _core
from jpo.arrays import as_array
from jpo.errors import JpoError

Vector = np.ndarray[Any, np.dtype[np.float64]]
LossName = Literal[
    "sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
    "apo_down", "discopop", "aot", "aot_unpaired", "kto", "simpo", "orpo", "sft", "rpo", "iopo",
    "dpo_rk", "dpo_davidson",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)

# the bits of csrc/objective/losses.h
_BITS = {
    "reference": 1,
    "chosen_lengths": 2,
    "rejected_lengths": 4,
    "label_smoothing": 8,
    "f_divergence_type": 16,
    "gamma": 32,
    "orpo_lambda": 64,
    "discopop_tau": 128,
    "kl": 256,
    "rpo_weights": 512,
    "groups": 1024,
    "of_d_alone": 2048,
    "couples_batch": 4096,
    "length_normalize": 8192,
    "ties": 16384,
}
NU = {"dpo_rk": 3.0, "dpo_davidson": 1.0}  # equal rewards tie with probability 1/2, as the paper sets both


@dataclass(frozen=True)
class LossInfo:
    """What a loss reads; `of_d_alone`: a function of D, so that what both sides share cancels; `couples_batch`: a
    pair's loss depends on the other pairs of the optimizer step."""

    name: str
    index: int
    reads: frozenset[str]

    @property
    def reference(self) -> bool:
        """Whether the loss needs the reference model's log-likelihoods."""
        return "reference" in self.reads

    @property
    def of_d_alone(self) -> bool:
        """A function of D alone (Lemma D.1 applies)."""
        return "of_d_alone" in self.reads

    @property
    def couples_batch(self) -> bool:
        """Takes the whole optimizer step as its batch."""
        return "couples_batch" in self.reads


LOSSES: dict[str, LossInfo] = {
    name: LossInfo(name, index, frozenset(key for key, bit in _BITS.items() if bits & bit))
    for index, (name, bits) in enumerate(_core.LOSSES)
}


@dataclass(frozen=True)
class PreferenceLoss:
    """Result of preference_loss: loss is the mean of losses (B,); grad_chosen = d loss / d policy_chosen, the mean's
    1/B included. rewards = beta (log p - log p_ref) (reference-free losses: beta log p), margins their difference,
    accuracies 1.0 where the chosen reward is larger. All float64."""

    loss: float
    losses: Vector
    rewards_chosen: Vector
    rewards_rejected: Vector
    margins: Vector
    accuracies: Vector
    grad_chosen: Vector
    grad_rejected: Vector


def _vector(name: str, value: Any, count: int | None) -> Vector:
    array = as_array(name, value, lists=True)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected real numbers (float32 or float64), got {array.dtype}")
    if array.ndim != 1:
        raise JpoError(f"{name}: expected shape (B,), got {array.shape}")
    if count is not None and len(array) != count:
        raise JpoError(f"{name}: expected {count} values as policy_chosen has, got {len(array)}")
    if len(array) == 0:
        raise JpoError(f"{name}: the batch is empty; expected at least one pair")
    return np.ascontiguousarray(array, dtype=np.float64)


def _lengths(name: str, value: Any, count: int) -> Vector:
    array = _vector(name, value, count)
    if not (array >= 1).all():
        raise JpoError(f"{name}: every length must be at least 1 token, got {array.min()}")
    return array


def _number(name: str, value: Any, low: float, high: float, open_low: bool = False) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= value <= high or (open_low and value == low) or not np.isfinite(value):
        least = f"above {low}" if open_low else f"from {low}" if np.isfinite(high) else f"of at least {low}"
        most = f" to {high}" if np.isfinite(high) else ""
        raise JpoError(f"{name}: expected a number {least}{most}, got {value}")
    return float(value)


def _chosen_losses(loss: str | Sequence[str], weights: Sequence[float] | None) -> list[tuple[LossInfo, float]]:
    names = [loss] if isinstance(loss, str) else list(loss)
    if not names:
        raise JpoError("loss: expected a name or a list of names, got an empty list")
    for name in names:
        if name not in LOSSES:
            raise JpoError(f"loss: expected one of {', '.join(LOSSES)}, got {name!r}")
    if weights is None:
        return [(LOSSES[name], 1.0) for name in names]
    if isinstance(loss, str):
        raise JpoError(f"loss_weights goes with a list of losses; loss={loss!r} would ignore it")
    if len(weights) != len(names):
        raise JpoError(f"loss_weights: expected {len(names)} weights as loss has, got {len(weights)}")
    return [
        (LOSSES[name], _number(f"loss_weights[{index}]", weight, -np.inf, np.inf))
        for index, (name, weight) in enumerate(zip(names, weights, strict=True))
    ]


def preference_loss(
    policy_chosen: npt.ArrayLike,
    policy_rejected: npt.ArrayLike,
    ref_chosen: npt.ArrayLike | None = None,
    ref_rejected: npt.ArrayLike | None = None,
    *,
    loss: LossName | Sequence[LossName] = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_lengths: npt.ArrayLike | None = None,
    rejected_lengths: npt.ArrayLike | None = None,
    length_normalize: bool | None = None,
    gamma: float = 0.5,
    orpo_lambda: float = 0.1,
    discopop_tau: float = 0.05,
    kl: npt.ArrayLike | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    loss_weights: Sequence[float] | None = None,
    f_divergence_type: Divergence = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
    rpo_weights: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    pair_weights: npt.ArrayLike | None = None,
    ties: npt.ArrayLike | None = None,
    nu: float | None = None,
) -> PreferenceLoss:
    """A preference objective and its gradient over (B,) sequence log-likelihoods.

    loss: a name of jpo.objectives.LOSSES, or a list of names summed with loss_weights (default 1 each, not normalized).
    kl (kto): the mismatched completions' s (any shape), or their mean; z = max(0, mean). rpo_weights (B, B); groups
    (B,) integers; pair_weights (B,) multiply each pair's loss (WPO). ipo divides by the lengths unless
    length_normalize=False. dpo_rk and dpo_davidson take ties (B,), true where neither side is preferred, and nu, how
    readily they tie (default: NU). kto alone takes policy_chosen and policy_rejected of different lengths, unpaired
    examples: losses, margins and accuracies are then (B_w + B_l,), chosen first, margins beta (s_w - z) and
    beta (z - s_l).
    ValueError names an argument that the loss needs and lacks, and one that was given and would be ignored.
    """
    chosen = _chosen_losses(loss, loss_weights)
    if [info.name for info, _ in chosen] == ["kto"] and np.shape(policy_chosen) != np.shape(policy_rejected):
        return _unpaired_kto(
            policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, kl, desirable_weight, undesirable_weight
        )
    names = " + ".join(info.name for info, _ in chosen)
    reads = frozenset().union(*(info.reads for info, _ in chosen))
    lp_w = _vector("policy_chosen", policy_chosen, None)
    count = len(lp_w)
    lp_l = _vector("policy_rejected", policy_rejected, count)
    beta = _number("beta", beta, 0, np.inf, open_low=True)
    lengths = lengths_read([info for info, _ in chosen], length_normalize)
    read = reads - {"chosen_lengths", "rejected_lengths"} | lengths
    given = {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected, "chosen_lengths": chosen_lengths,
             "rejected_lengths": rejected_lengths, "kl": kl, "rpo_weights": rpo_weights, "groups": groups}  # fmt: skip
    _check_arrays(names, read, given)
    changed = {
        "label_smoothing": label_smoothing != 0,
        "length_normalize": length_normalize is not None,
        "gamma": gamma != 0.5,
        "orpo_lambda": orpo_lambda != 0.1,
        "discopop_tau": discopop_tau != 0.05,
        "ties": ties is not None,
        "nu": nu is not None,
    }
    _refuse_ignored(names, reads, changed)
    if (desirable_weight != 1 or undesirable_weight != 1) and "kl" not in reads:
        raise JpoError(f"loss {names} would ignore desirable_weight and undesirable_weight; they belong to kto")
    _check_divergence(chosen, f_divergence_type, f_alpha_divergence_coef)
    coupled = [info.name for info, _ in chosen if info.couples_batch]
    if pair_weights is not None and coupled:
        raise JpoError(f"pair_weights: loss {coupled[0]} couples the pairs of a batch and would not keep their meaning")
    arrays = [
        None if ref_chosen is None else _vector("ref_chosen", ref_chosen, count),
        None if ref_rejected is None else _vector("ref_rejected", ref_rejected, count),
        None if chosen_lengths is None else _lengths("chosen_lengths", chosen_lengths, count),
        None if rejected_lengths is None else _lengths("rejected_lengths", rejected_lengths, count),
    ]
    coupling = [
        None if rpo_weights is None else _matrix(rpo_weights, count),
        None if groups is None else _groups(groups, count),
        None if ties is None else _ties(ties, count),
    ]
    settings = [
        beta,
        _smoothing(names, label_smoothing),
        _number("gamma", gamma, -np.inf, np.inf),
        _number("orpo_lambda", orpo_lambda, 0, np.inf),
        _number("discopop_tau", discopop_tau, 0, np.inf, open_low=True),
        _reference_point(kl),
        _number("desirable_weight", desirable_weight, 0, np.inf),
        _number("undesirable_weight", undesirable_weight, 0, np.inf),
        _number("f_alpha_divergence_coef", f_alpha_divergence_coef, -np.inf, np.inf),
        0.0,  # nu, which is each loss's own
        DIVERGENCES.index(f_divergence_type),
        "length_normalize" in reads and length_normalize is not False,
    ]
    total = _summed(chosen, lp_w, lp_l, [*arrays, *coupling], settings, nu)
    if pair_weights is not None:
        weights = _vector("pair_weights", pair_weights, count)
        total = [part * weights for part in total]
    losses, d_w, d_l = total
    rewards_w = beta * (lp_w - (0 if arrays[0] is None else arrays[0]))
    rewards_l = beta * (lp_l - (0 if arrays[1] is None else arrays[1]))
    accuracies = (rewards_w > rewards_l).astype(np.float64)
    mean, margins = float(losses.mean()), rewards_w - rewards_l
    return PreferenceLoss(mean, losses, rewards_w, rewards_l, margins, accuracies, d_w / count, d_l / count)


def lengths_read(infos: Sequence[LossInfo], length_normalize: bool | None) -> frozenset[str]:
    """Which of chosen_lengths and rejected_lengths the losses read together: those that may divide by lengths or not do
    unless length_normalize is False."""
    return frozenset(
        name
        for info in infos
        for name in ("chosen_lengths", "rejected_lengths")
        if name in info.reads and not ("length_normalize" in info.reads and length_normalize is False)
    )


def _check_arrays(names: str, read: frozenset[str], given: dict[str, Any]) -> None:
    """JpoError for an array that a loss reads and that is not given, or the other way round."""
    for name, value in given.items():
        reads = ("reference" if name.startswith("ref_") else name) in read
        if reads and value is None:
            raise JpoError(f"loss {names} needs {name}")
        if value is not None and not reads:
            raise JpoError(f"loss {names} would ignore {name}; leave it out")


def _smoothing(names: str, label_smoothing: float) -> float:
    """label_smoothing within the bounds of each loss."""
    smoothing = _number("label_smoothing", label_smoothing, 0, 1)
    if "robust" in names.split(" + ") and smoothing >= 0.5:
        raise JpoError(f"label_smoothing: loss robust needs less than 0.5, got {label_smoothing}")
    if "exo_pair" in names.split(" + ") and not 0 < smoothing < 1:
        raise JpoError(
            f"label_smoothing: loss exo_pair needs a number above 0 and below 1 (its paper takes 0.001), got {label_smoothing}"
        )
    return smoothing


def _summed(
    chosen: Sequence[tuple[LossInfo, float]],
    lp_w: Vector,
    lp_l: Vector,
    arrays: Sequence[Any],
    settings: list[Any],
    nu: float | None,
) -> list[Vector]:
    """losses (B,) and their derivatives by lp_w and lp_l (B,), weighted and summed over the losses."""
    total = [np.zeros(len(lp_w)) for _ in range(3)]
    for info, weight in chosen:
        settings[_NU_AT] = _nu(info.name, nu)
        parts = _core.preference(info.index, lp_w, lp_l, *arrays, *settings)
        for sum_, part in zip(total, parts, strict=True):
            sum_ += weight * part
    return total


def _refuse_ignored(names: str, reads: frozenset[str], changed: dict[str, bool]) -> None:
    """JpoError for a setting that was changed and that no loss reads; `nu` belongs to the losses of ties."""
    for name, is_changed in changed.items():
        if is_changed and {"nu": "ties"}.get(name, name) not in reads:
            raise JpoError(f"loss {names} would ignore {name}; leave it out")


def _check_divergence(
    chosen: list[tuple[LossInfo, float]], f_divergence_type: Divergence, f_alpha_divergence_coef: float
) -> None:
    """JpoError for a divergence that does not exist, or that a loss does not read."""
    if f_divergence_type not in DIVERGENCES:
        raise JpoError(f"f_divergence_type: expected one of {', '.join(DIVERGENCES)}, got {f_divergence_type!r}")
    for info, _ in chosen:
        if f_divergence_type != "reverse_kl" and "f_divergence_type" not in info.reads:
            raise JpoError(f"loss {info.name} would ignore f_divergence_type={f_divergence_type!r}")
    if f_alpha_divergence_coef != 0.5 and f_divergence_type != "alpha_divergence":
        raise JpoError(f"f_divergence_type {f_divergence_type} would ignore f_alpha_divergence_coef; leave it out")


_NU_AT = 9  # nu's place in the settings


def _nu(loss: str, nu: float | None) -> float:
    """How readily a loss of ties ties; 0 for the others. Rao and Kupper's model has no ties at 1."""
    if loss not in NU:
        return 0.0
    low = 1.0 if loss == "dpo_rk" else 0.0
    return NU[loss] if nu is None else _number(f"nu of loss {loss}", nu, low, np.inf, open_low=True)


def _ties(value: npt.ArrayLike, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    array = as_array("ties", value, lists=True)
    if array.dtype.kind != "b" or array.shape != (count,):
        raise JpoError(f"ties: expected ({count},) booleans, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _unpaired_kto(
    policy_chosen: npt.ArrayLike,
    policy_rejected: npt.ArrayLike,
    ref_chosen: npt.ArrayLike | None,
    ref_rejected: npt.ArrayLike | None,
    beta: float,
    kl: npt.ArrayLike | None,
    desirable_weight: float,
    undesirable_weight: float,
) -> PreferenceLoss:
    """kto over (B_w,) desirable and (B_l,) undesirable examples: the mean over all of them."""
    for name, value in (("ref_chosen", ref_chosen), ("ref_rejected", ref_rejected), ("kl", kl)):
        if value is None:
            raise JpoError(f"loss kto needs {name}")
    beta, z = _number("beta", beta, 0, np.inf, open_low=True), _reference_point(kl)
    weights = (
        _number("desirable_weight", desirable_weight, 0, np.inf),
        _number("undesirable_weight", undesirable_weight, 0, np.inf),
    )
    given: dict[str, Any] = {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}
    given |= {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    empty = np.zeros(0)
    lp_w, lp_l, ref_w, ref_l = (_vector(n, v, None) if np.size(v) else empty for n, v in given.items())
    for name, ref, policy in (("ref_chosen", ref_w, lp_w), ("ref_rejected", ref_l, lp_l)):
        if len(ref) != len(policy):
            raise JpoError(f"{name}: expected {len(policy)} values as policy_{name[4:]} has, got {len(ref)}")
    count = len(lp_w) + len(lp_l)
    sides = []
    for side, lp, ref in ((0, lp_w, ref_w), (1, lp_l, ref_l)):
        own = [0.0, 0.0]
        own[side] = 2 * weights[side]  # the core takes the mean over two examples a pair
        settings = (beta, 0.0, 0.0, 0.0, 1.0, z, *own, 0.5, 0.0, 0, False)
        parts = (
            _core.preference(LOSSES["kto"].index, lp, lp, ref, ref, *[None] * 5, *settings) if len(lp) else [empty] * 3
        )
        sides.append((parts[0], parts[1 + side] / count))
    losses = np.concatenate([sides[0][0], sides[1][0]])
    rewards_w, rewards_l = beta * (lp_w - ref_w), beta * (lp_l - ref_l)
    margins = np.concatenate([rewards_w - beta * z, beta * z - rewards_l])
    accuracies = (margins > 0).astype(np.float64)
    return PreferenceLoss(
        float(losses.mean()), losses, rewards_w, rewards_l, margins, accuracies, sides[0][1], sides[1][1]
    )


def _reference_point(kl: npt.ArrayLike | None) -> float:
    """kto's z = max(0, mean s of the mismatched completions); 0 where the loss has none."""
    if kl is None:
        return 0.0
    values = np.asarray(as_array("kl", kl, lists=True), dtype=np.float64)
    if values.size == 0:
        raise JpoError("kl: expected the mismatched completions' s or their mean, got an empty array")
    return float(np.maximum(values.mean(), 0.0))


def _matrix(value: npt.ArrayLike, count: int) -> Vector:
    array = np.ascontiguousarray(as_array("rpo_weights", value, lists=True), dtype=np.float64)
    if array.shape != (count, count):
        raise JpoError(f"rpo_weights: expected shape ({count}, {count}), got {array.shape}")
    return array


def _groups(value: npt.ArrayLike, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    array = as_array("groups", value, lists=True)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise JpoError(f"groups: expected ({count},) integers, got {array.dtype} of shape {array.shape}")
    return np.ascontiguousarray(array, dtype=np.int64)
