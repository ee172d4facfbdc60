"""Every loss against its independent definition, every gradient against float64 central differences."""

import numpy as np
import pytest

import jpo
from jpo.objectives import DIVERGENCES, LOSSES
from tests.reference import losses as reference

B = 6


def batch(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 40, size=(2, B)).astype(float)
    policy = -np.abs(rng.normal(size=(2, B)) * scale + 1) * lengths
    ref = policy + rng.normal(size=(2, B)) * 3 * scale
    return policy, ref, lengths


def arguments(name, policy, ref, lengths, seed=0, **extra):
    """The keyword arguments that the loss takes: for jpo and for the reference."""
    rng = np.random.default_rng(seed + 100)
    reads = LOSSES[name].reads
    ours, theirs = dict(extra), {}
    if "reference" in reads:
        ours |= {"ref_chosen": ref[0], "ref_rejected": ref[1]}
        theirs |= {"rw": ref[0], "rl": ref[1]}
    if "chosen_lengths" in reads and extra.get("length_normalize") is not False:
        ours["chosen_lengths"] = theirs["nw"] = lengths[0]
    if "rejected_lengths" in reads and extra.get("length_normalize") is not False:
        ours["rejected_lengths"] = theirs["nl"] = lengths[1]
    if "label_smoothing" in reads:
        ours["label_smoothing"] = theirs["e"] = 0.15
    if "kl" in reads:
        ours["kl"] = theirs["kl"] = rng.normal(size=4) + 1
        ours |= {"desirable_weight": 1.5, "undesirable_weight": 0.5}
        theirs |= {"wd": 1.5, "wu": 0.5}
    if "rpo_weights" in reads:
        ours["rpo_weights"] = theirs["weights"] = rng.dirichlet(np.ones(B), size=B)
    if "groups" in reads:
        ours["groups"] = theirs["groups"] = np.array([0, 1, 0, 2, 1, 2])
    if "ties" in reads:
        ours["ties"] = theirs["ties"] = np.array([False, True, True, False, True, False])
    for key, short in {"beta": "beta", "length_normalize": "normalize", "f_divergence_type": "kind",
                       "f_alpha_divergence_coef": "alpha", "gamma": "gamma", "orpo_lambda": "lam", "discopop_tau": "tau", "nu": "nu"}.items():  # fmt: skip
        if key in extra:
            theirs[short] = extra[key]
    return ours, theirs


def check(name, policy, ref, lengths, *, gradient=True, **extra):
    ours, theirs = arguments(name, policy, ref, lengths, **extra)
    got = jpo.preference_loss(policy[0], policy[1], loss=name, **ours)
    want = reference.losses(name, policy[0], policy[1], **theirs)
    np.testing.assert_allclose(got.losses, want, rtol=1e-9, atol=1e-12)
    assert got.loss == pytest.approx(want.mean(), rel=1e-9, abs=1e-12)
    if not gradient:
        return
    for side, gradients in ((0, got.grad_chosen), (1, got.grad_rejected)):
        for i in range(B):
            step = 1e-5 * max(1.0, abs(policy[side, i]))
            ends = []
            for sign in (1, -1):
                moved = policy.copy()
                moved[side, i] += sign * step
                ends.append(reference.losses(name, moved[0], moved[1], **theirs).mean())
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert gradients[i] == pytest.approx(numeric, rel=2e-5, abs=2e-8), (side, i)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_equal_values_keep_the_order_of_their_pairs(name):
    """Whole numbers, so that values are exactly equal: the ranks of equal ones are those of their places."""
    policy, ref, lengths = batch(3)
    policy, ref = np.floor(policy), np.floor(ref)
    steps = np.array([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    policy[0] = steps + (policy[1] if name == "aot" else ref[0])
    check(name, policy, ref, lengths, gradient=False)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient(name, seed):
    check(name, *batch(seed), beta=[0.1, 0.7, 0.03][seed])


@pytest.mark.parametrize("name", [name for name, info in LOSSES.items() if "f_divergence_type" in info.reads])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergences(name, kind):
    check(name, *batch(3), f_divergence_type=kind)


@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0, 2.0])
def test_alpha(alpha):
    check("sigmoid", *batch(4), f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha)


def test_ipo_summed():
    check("ipo", *batch(5), length_normalize=False)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("orpo", "sft", "ipo", "sppo_hard")])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_margins(name, size):
    policy, ref, lengths = batch(6)
    policy = policy + np.where(np.arange(B) % 2, size, -size) * np.array([[1.0], [-1.0]])
    ours, theirs = arguments(name, policy, ref, lengths, beta=1.0)
    got = jpo.preference_loss(policy[0], policy[1], loss=name, **ours)
    np.testing.assert_allclose(
        got.losses, reference.losses(name, policy[0], policy[1], **theirs), rtol=1e-9, atol=1e-12
    )
    assert np.isfinite(got.grad_chosen).all() and np.isfinite(got.grad_rejected).all()


@pytest.mark.parametrize("name", [name for name, info in LOSSES.items() if info.of_d_alone])
def test_shared_prompt_cancels(name):
    """Lemma D.1 in numbers: what both sides gain in log-likelihood changes neither loss nor gradient."""
    policy, ref, lengths = batch(7)
    ours, _ = arguments(name, policy, ref, lengths)
    first = jpo.preference_loss(policy[0], policy[1], loss=name, **ours)
    shift, ref_shift = np.linspace(-50, 0, B), np.linspace(-40, -1, B)
    ours, _ = arguments(name, policy, ref + ref_shift, lengths)
    second = jpo.preference_loss(policy[0] + shift, policy[1] + shift, loss=name, **ours)
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-9)
    np.testing.assert_allclose(first.grad_chosen, second.grad_chosen, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(second.grad_chosen, -second.grad_rejected, rtol=1e-12)


def test_weighted_list_and_pair_weights():
    policy, ref, lengths = batch(8)
    both = jpo.preference_loss(
        *policy, *ref, loss=["sigmoid", "sft"], loss_weights=[1.0, 0.2], chosen_lengths=lengths[0]
    )
    one = jpo.preference_loss(*policy, *ref)
    sft = jpo.preference_loss(*policy, loss="sft", chosen_lengths=lengths[0])
    assert both.loss == pytest.approx(one.loss + 0.2 * sft.loss)
    np.testing.assert_allclose(both.grad_chosen, one.grad_chosen + 0.2 * sft.grad_chosen)
    assert not sft.grad_rejected.any()
    weights = np.linspace(0, 2, B)
    weighted = jpo.preference_loss(*policy, *ref, pair_weights=weights)
    np.testing.assert_allclose(weighted.losses, one.losses * weights)
    np.testing.assert_allclose(weighted.grad_rejected, one.grad_rejected * weights)


def test_rewards():
    policy, ref, _ = batch(9)
    got = jpo.preference_loss(*policy, *ref, beta=0.3)
    np.testing.assert_allclose(got.rewards_chosen, 0.3 * (policy[0] - ref[0]))
    np.testing.assert_allclose(got.margins, got.rewards_chosen - got.rewards_rejected)
    np.testing.assert_array_equal(got.accuracies, got.margins > 0)


def test_infinities_and_nan():
    zero = np.zeros(3)
    got = jpo.preference_loss([-np.inf, -1.0, np.nan], [-1.0, -np.inf, -1.0], zero, zero)
    assert got.losses[0] == np.inf and got.losses[1] == 0 and np.isnan(got.losses[2])
    np.testing.assert_allclose(got.grad_chosen[:2] * 3, [-0.1, 0.0])


@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_response_of_no_probability(name, side):
    """At -inf each loss and gradient is what it tends to: discopop's loss was NaN. NaN itself stays NaN."""

    def found(value):
        policy, ref, lengths = batch(12)
        policy[side][2] = value
        ours, _ = arguments(name, policy, ref, lengths)
        got = jpo.preference_loss(*policy, loss=name, **ours)
        return np.array([got.losses, got.grad_chosen, got.grad_rejected])

    limit, far = found(-np.inf), found(-1e9)
    assert not np.isnan(limit).any()
    endless = np.isinf(limit)
    np.testing.assert_allclose(limit[~endless], far[~endless], rtol=1e-6, atol=1e-6)
    assert (np.sign(limit[endless]) == np.sign(far[endless])).all() and (np.abs(far[endless]) > 1e5).all()
    if side == 0 or name != "sft":  # which does not read the rejected side
        assert np.isnan(found(np.nan)[0]).any()


def test_orpo_without_its_odds():
    """With weight 0 it is the cross entropy of the chosen side, also where the rejected one is certain: odds of 0."""
    given = {"loss": "orpo", "orpo_lambda": 0.0, "chosen_lengths": [2.0], "rejected_lengths": [3.0]}
    found = jpo.preference_loss([-4.0], [0.0], **given)
    assert (found.losses[0], found.grad_chosen[0], found.grad_rejected[0]) == (2.0, -0.5, 0.0)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_discopop_at_no_probability(tau):
    """log sg(x / tau) - x tends to -inf, 0 or inf by whether tau lies below, at or above 1."""
    zero = np.zeros(1)
    given = {"ref_chosen": zero, "ref_rejected": zero, "loss": "discopop", "discopop_tau": tau, "beta": 0.1}
    limit, far = (jpo.preference_loss([value], [-1.0], **given) for value in (-np.inf, -4000.0))
    assert limit.losses[0] == np.inf and far.losses[0] > 100
    if tau <= 1:
        np.testing.assert_allclose([limit.grad_chosen, limit.grad_rejected], [far.grad_chosen, far.grad_rejected])
    else:
        assert limit.grad_chosen[0] == -np.inf and limit.grad_rejected[0] == np.inf and far.grad_chosen[0] < -1e10


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
def test_a_response_of_no_probability_under_a_divergence(divergence, side):
    def found(value):
        policy, ref, _ = batch(13)
        policy[side][2] = value
        got = jpo.preference_loss(*policy, ref_chosen=ref[0], ref_rejected=ref[1], f_divergence_type=divergence)
        return np.array([got.losses, got.grad_chosen, got.grad_rejected])

    limit, far = found(-np.inf), found(-1e9)
    finite = np.isfinite(limit)
    assert not np.isnan(limit).any() and finite.sum() >= limit.size - 1
    np.testing.assert_allclose(limit[finite], far[finite], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_missing_and_ignored_arguments(name):
    policy, ref, lengths = batch(10)
    ours, _ = arguments(name, policy, ref, lengths)
    for key in {"ref_chosen", "ref_rejected", "chosen_lengths", "rejected_lengths", "kl", "rpo_weights", "groups"}:
        if key in ours:
            with pytest.raises(ValueError, match=f"{name} needs {key}"):
                jpo.preference_loss(*policy, loss=name, **{k: v for k, v in ours.items() if k != key})
        else:
            value = {"rpo_weights": np.eye(B), "ties": np.ones(B, dtype=bool)}.get(key, np.ones(B, dtype=int))
            with pytest.raises(ValueError, match=f"{name} would ignore {key}"):
                jpo.preference_loss(*policy, loss=name, **ours, **{key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "dpo"}, "loss"),
        ({"loss": []}, "empty list"),
        ({"beta": 0}, "beta"),
        ({"beta": -1.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"loss": "robust", "label_smoothing": 0.5}, "robust"),
        ({"loss": "exo_pair"}, "exo_pair needs .* above 0 and below 1 .its paper takes 0.001., got 0"),
        ({"gamma": 0.1}, "gamma"),
        ({"loss_weights": [1.0]}, "loss_weights"),
        ({"loss": ["sigmoid"], "loss_weights": [1.0, 2.0]}, "loss_weights"),
        ({"f_divergence_type": "kl"}, "f_divergence_type"),
        ({"loss": "nca_pair", "f_divergence_type": "forward_kl"}, "nca_pair"),
        ({"f_alpha_divergence_coef": 0.2}, "f_alpha_divergence_coef"),
        ({"ref_chosen": np.zeros(3)}, "ref_chosen"),
        ({"ref_rejected": np.zeros((B, 1))}, "ref_rejected"),
        ({"desirable_weight": 2.0}, "kto"),
        ({"loss": "aot", "pair_weights": np.ones(B)}, "aot"),
    ],
)
def test_bad_input(changes, message):
    policy, ref, _ = batch(11)
    with pytest.raises(ValueError, match=message):
        jpo.preference_loss(*policy, **({"ref_chosen": ref[0], "ref_rejected": ref[1]} | changes))


@pytest.mark.parametrize("name", ["dpo_rk", "dpo_davidson"])
@pytest.mark.parametrize("nu", [None, 1.5, 8.0])
def test_ties(name, nu):
    """Without ties, and by how readily it ties; the three outcomes of a pair have probability 1 in sum."""
    extra = {} if nu is None else {"nu": nu}
    check(name, *batch(12), **extra)
    policy, ref, _ = batch(13)
    ours = {"ref_chosen": ref[0], "ref_rejected": ref[1], "loss": name, **extra}
    wins = jpo.preference_loss(*policy, **ours)
    loses = jpo.preference_loss(*policy[::-1], **{**ours, "ref_chosen": ref[1], "ref_rejected": ref[0]})
    ties = jpo.preference_loss(*policy, ties=np.ones(B, bool), **ours)
    np.testing.assert_allclose(sum(np.exp(-part.losses) for part in (wins, loses, ties)), 1, rtol=1e-12)
    even = jpo.preference_loss([-1.0], [-2.0], [-1.5], [-2.5], loss=name, ties=[True], **extra)
    if nu is None:  # as the paper sets nu: equal rewards tie half the time, where a tie has no gradient
        assert even.loss == pytest.approx(np.log(2)) and abs(even.grad_chosen[0]) < 1e-15
    with pytest.raises(ValueError, match=f"nu of loss {name}"):
        jpo.preference_loss(*policy, ref[0], ref[1], loss=name, nu=1.0 if name == "dpo_rk" else 0.0)


def test_ties_drive_the_margin_to_zero():
    for name in ("dpo_rk", "dpo_davidson"):
        lost, won = (jpo.preference_loss([s], [0.0], [0.0], [0.0], loss=name, ties=[True]) for s in (-5.0, 5.0))
        assert lost.grad_chosen[0] < 0 < won.grad_chosen[0] and lost.loss == pytest.approx(won.loss)


def test_bad_ties():
    policy, ref, _ = batch(14)
    with pytest.raises(ValueError, match="sigmoid would ignore ties"):
        jpo.preference_loss(*policy, *ref, ties=np.ones(B, bool))
    with pytest.raises(ValueError, match="sigmoid would ignore nu"):
        jpo.preference_loss(*policy, *ref, nu=2.0)
    for wrong in (np.ones(B), np.ones(B - 1, bool)):
        with pytest.raises(ValueError, match="ties: expected"):
            jpo.preference_loss(*policy, *ref, loss="dpo_rk", ties=wrong)


@pytest.mark.parametrize(("desirable", "undesirable"), [(5, 2), (0, 3), (3, 0)])
def test_unpaired_kto(desirable, undesirable):
    """Definition and gradient over examples that are no pairs."""
    policy, ref, _ = batch(15)
    w, l, rw, rl = policy[0][:desirable], policy[1][:undesirable], ref[0][:desirable], ref[1][:undesirable]
    options = {
        "ref_chosen": rw,
        "ref_rejected": rl,
        "kl": [0.5, 1.5],
        "desirable_weight": 1.5,
        "undesirable_weight": 0.5,
    }

    def definition(w, l):
        wins, fails = reference.sg(0.3 * ((w - rw) - 1)), reference.sg(0.3 * (1 - (l - rl)))
        return np.concatenate([1.5 * (1 - wins), 0.5 * (1 - fails)])

    got = jpo.preference_loss(w, l, loss="kto", beta=0.3, **options)
    np.testing.assert_allclose(got.losses, definition(w, l), rtol=1e-12)
    assert got.loss == pytest.approx(definition(w, l).mean())
    np.testing.assert_allclose(got.margins, np.concatenate([0.3 * ((w - rw) - 1), 0.3 * (1 - (l - rl))]))
    for side, gradient in ((0, got.grad_chosen), (1, got.grad_rejected)):
        for i in range(len(gradient)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [w.copy(), l.copy()]
                moved[side][i] += step
                ends.append(definition(*moved).mean())
            assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-10)
    with pytest.raises(ValueError, match="kto needs kl"):
        jpo.preference_loss(w, l, loss="kto", ref_chosen=rw, ref_rejected=rl)
    with pytest.raises(ValueError, match="ref_chosen: expected"):
        jpo.preference_loss(w, l, loss="kto", **{**options, "ref_chosen": np.zeros(9)})


def test_paired_kto_is_unpaired_kto_of_as_many():
    policy, ref, _ = batch(16)
    options = {"loss": "kto", "kl": [0.7], "desirable_weight": 1.2}
    paired = jpo.preference_loss(*policy, *ref, **options)
    more = jpo.preference_loss(policy[0], policy[1][:-1], ref[0], ref[1][:-1], **options)
    np.testing.assert_allclose(more.grad_chosen * (2 * B - 1), paired.grad_chosen * 2 * B, rtol=1e-12)


def test_empty_batch_and_types():
    with pytest.raises(ValueError, match="empty"):
        jpo.preference_loss([], [], [], [])
    with pytest.raises(TypeError, match="policy_chosen"):
        jpo.preference_loss(["a"], [1.0], [1.0], [1.0])
    with pytest.raises(TypeError, match="beta"):
        jpo.preference_loss([1.0], [1.0], [1.0], [1.0], beta="x")
