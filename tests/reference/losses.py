"""Independent float64 definitions of every loss, straight from the papers' formulas: plain NumPy, no shared code."""

import numpy as np


def ls(x):
    return -np.logaddexp(0.0, -np.asarray(x, dtype=np.float64))


def sg(x):
    return np.exp(ls(x))


def h(s, kind="reverse_kl", alpha=0.5):
    """The f-divergences' replacement of s."""
    if kind == "forward_kl":
        return 1 - np.exp(np.minimum(-s, 80))
    if kind == "js_divergence":
        return np.log(2) + ls(s)
    if kind == "alpha_divergence" and alpha != 1:
        return (np.exp(np.minimum((alpha - 1) * s, 80)) - 1) / (alpha - 1)
    return s


def losses(
    name,
    w,
    l,
    rw=0.0,
    rl=0.0,
    *,
    beta=0.1,
    e=0.0,
    nw=None,
    nl=None,
    gamma=0.5,
    lam=0.1,
    tau=0.05,
    kl=0.0,
    wd=1.0,
    wu=1.0,
    weights=None,
    groups=None,
    ties=None,
    nu=None,
    normalize=True,
    kind="reverse_kl",
    alpha=0.5,
):
    """(B,) losses before the mean over pairs."""
    b, n = beta, len(w)
    sw, sl = h(w - rw, kind, alpha), h(l - rl, kind, alpha)
    d = sw - sl
    x = b * d
    smooth = lambda v: -(1 - e) * ls(v) - e * ls(-v)  # noqa: E731
    match name:
        case "sigmoid":
            return smooth(x)
        case "robust":
            return (-(1 - e) * ls(x) + e * ls(-x)) / (1 - 2 * e)
        case "hinge":
            return np.maximum(0, 1 - x)
        case "ipo":
            return ((sw / nw - sl / nl if normalize else d) - 1 / (2 * b)) ** 2
        case "sigmoid_norm":
            return -ls(b * (sw / nw - sl / nl))
        case "exo_pair":
            return sg(x) * (ls(x) - np.log(1 - e)) + sg(-x) * (ls(-x) - np.log(e))
        case "nca_pair":
            return -ls(b * sw) - ls(-b * sw) / 2 - ls(-b * sl) / 2
        case "bco_pair":
            return -ls(b * sw) - ls(-b * sl)
        case "sppo_hard":
            return (sw - 1 / (2 * b)) ** 2 + (sl + 1 / (2 * b)) ** 2
        case "apo_zero":
            return 1 - sg(b * sw) + sg(b * sl)
        case "apo_down":
            return sg(b * sw) + 1 - sg(x)
        case "discopop":
            return -sg(-x / tau) * ls(x) + np.exp(ls(x / tau) - x)
        case "aot":
            order = np.argsort(w - l, kind="stable")
            out = np.empty(n)
            out[order] = smooth(b * (np.sort(w - l) - np.sort(np.broadcast_to(rw - rl, (n,)))))
            return out
        case "aot_unpaired":
            out = np.empty(n)
            out[np.argsort(sw, kind="stable")] = smooth(b * (np.sort(sw) - np.sort(sl)))
            return out
        case "kto":  # the mean over 2 B examples, as a mean over B pairs
            z = max(0.0, float(np.mean(kl)))
            return (wd * (1 - sg(b * (sw - z))) + wu * (1 - sg(b * (z - sl)))) / 2
        case "simpo":
            return smooth(b * (w / nw - l / nl) - gamma)
        case "orpo":
            aw, al = w / nw, l / nl
            odds = (aw - np.log(-np.expm1(aw))) - (al - np.log(-np.expm1(al)))
            return -aw - lam * ls(odds)
        case "sft":
            return -w * n / np.sum(nw)
        case "rpo":
            return np.mean(-ls(b * weights * (sw[:, None] - sl[None, :])), axis=1)
        case "iopo":
            return np.array([-ls(b * d[groups == g].sum()) / np.sum(groups == g) for g in groups])
        case "dpo_rk":  # Rao and Kupper: strengths e^x and 1
            nu = 3.0 if nu is None else nu
            wins = x - np.logaddexp(x, np.log(nu))
            tie = np.log(nu**2 - 1) + x - np.logaddexp(x, np.log(nu)) - np.logaddexp(np.log(nu) + x, 0)
            return -np.where(ties, tie, wins) if ties is not None else -wins
        case "dpo_davidson":  # Davidson: a tie's strength is 2 nu times the geometric mean
            nu = 1.0 if nu is None else nu
            all_ = np.logaddexp(np.logaddexp(x, 0), np.log(2 * nu) + x / 2)
            wins, tie = x - all_, np.log(2 * nu) + x / 2 - all_
            return -np.where(ties, tie, wins) if ties is not None else -wins
    raise KeyError(name)
