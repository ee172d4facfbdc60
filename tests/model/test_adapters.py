"""Adapters whose rows have magnitudes (DoRA) against the float64 twin, with dropout and on quantized weights; what is
trained whole beside an adapter stays out of the reference."""

import numpy as np
import pytest
from model.test_model import scores, twin_scores
from reference.models import TINY, random_values, sequences

import jpo
from jpo.data.forest import build_forest
from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize

PREFIX = "base_model.model."
GIVEN = sequences(512)[:3]
WEIGHTS = np.array([1.0, -0.7, 0.4])


def model(folder, storage="float32", **changes):
    config = normalize("random", {**TINY, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, **changes})
    values = random_values(config)
    write_checkpoint(folder, config, values, load_checkpoint("tiny").tokenizer)
    return jpo.load(folder, storage=storage), config, values


def adapted(lm, seed=3, **options):
    """A DoRA adapter of two layers' modules whose values are all away from where they start."""
    lm.add_lora(r=3, lora_alpha=5, use_dora=True, **options)
    random = np.random.default_rng(seed)
    for name in lm.trainable.names:
        view = lm.trainable.view(name)
        scale = 0.1 if "lora_B" in name else 0.2 * np.abs(view).mean()
        view[...] += (scale * random.standard_normal(view.shape)).astype(np.float32)
    return lm


def merged(values, lm, changes=None, detached=None):
    """The twin's weights: float64, rows of W + s B A given their magnitudes. `changes` replace trained tensors;
    detached: the norms are still those of the values before (no gradient goes through them)."""
    trained = {name: np.asarray(lm.trainable.view(name), np.float64) for name in lm.trainable.names}
    held, trained = trained, trained | (changes or {})
    out = dict(values)
    for name in trained:
        if name.endswith("lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            module = stem.removeprefix(PREFIX)

            def rows(of, module=module, stem=stem):
                update = of[f"{stem}.lora_B.weight"] @ of[f"{stem}.lora_A.weight"]
                return np.asarray(values[f"{module}.weight"], np.float64) + lm.lora.scaling_of(module) * update

            norm = np.linalg.norm(rows(held if detached else trained), axis=1)
            out[f"{module}.weight"] = rows(trained) * (trained[f"{stem}.lora_magnitude_vector"] / norm)[:, None]
    return out


@pytest.mark.parametrize("targets", [("q_proj", "o_proj", "down_proj"), ("v_proj", "gate_proj")])
def test_gradients_are_finite_differences_of_the_float64_twin(tmp_path, targets):
    """Two-sided differences with the rows' norms held, as the paper and PEFT have it; and the merged model's scores."""
    lm, config, values = model(tmp_path / "base")
    adapted(lm, target_modules=targets)
    np.testing.assert_allclose(
        scores(lm, GIVEN, "joint"), twin_scores(config, merged(values, lm), GIVEN, "joint"), rtol=3e-5
    )
    scores(lm, GIVEN, "joint", WEIGHTS)
    random = np.random.default_rng(5)
    for name in [name for name in lm.trainable.names if ".layers.1." in name]:
        gradient = np.asarray(lm.trainable.grad(name), np.float64)
        direction = random.standard_normal(gradient.shape)
        direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)
        at = np.asarray(lm.trainable.view(name), np.float64)

        def objective(step, name=name, at=at, direction=direction):
            changed = merged(values, lm, {name: at + step * direction}, detached=True)
            return WEIGHTS @ twin_scores(config, changed, GIVEN, "joint")

        expected = (objective(1e-4) - objective(-1e-4)) / 2e-4
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=5e-4), name


@pytest.mark.parametrize("storage", ["q8_0", "bfloat16"])
def test_on_quantized_weights(tmp_path, storage):
    """The norms are those of the weights as they are held: a fresh adapter changes nothing, and an adapted model is the
    one that merges on the widened weights."""
    lm, config, values = model(tmp_path / "base", storage)
    before = scores(lm, GIVEN, "joint")
    lm.add_lora(r=3, use_dora=True, target_modules="all-linear")
    np.testing.assert_allclose(scores(lm, GIVEN, "joint"), before, rtol=1e-6)
    adapted(lm, target_modules="all-linear")
    held = {name: lm._stored(name).astype(np.float64) for name in values}
    twin = twin_scores(config, merged(held, lm), GIVEN, "joint")
    np.testing.assert_allclose(scores(lm, GIVEN, "joint"), twin, rtol=1e-4)


def test_changed_values_are_seen_and_threads_change_no_bit(tmp_path):
    """Norms are kept between passes: they must follow A, B and the magnitudes, in scoring and in generation."""
    lm, _, _ = model(tmp_path / "base")
    adapted(lm, target_modules="all-linear")
    text = "once upon"
    first, greedy = scores(lm, GIVEN, "joint"), lm.generate([text], temperature=0.0, max_new_tokens=6)[0][0].logp
    for part in ("lora_A", "lora_B", "magnitude"):
        for name in lm.trainable.names:
            if part in name:
                lm.trainable.view(name)[...] *= 1.5
        lm.merge(tmp_path / part)
        plain = jpo.load(tmp_path / part)
        np.testing.assert_allclose(scores(lm, GIVEN, "joint"), scores(plain, GIVEN, "joint"), rtol=3e-5)
        ours = lm.generate([text], temperature=0.0, max_new_tokens=6)[0][0]
        theirs = plain.generate([text], temperature=0.0, max_new_tokens=6)[0][0]
        assert ours.token_ids == theirs.token_ids and ours.logp == pytest.approx(theirs.logp, rel=1e-4)
        assert ours.logp != greedy
    assert not np.array_equal(first, scores(lm, GIVEN, "joint"))
    results = []
    before = jpo._core.get_num_threads()
    try:
        for threads in (1, 2, 3):
            jpo._core.set_num_threads(threads)
            lm.trainable.grads[:] = 0
            results.append((scores(lm, GIVEN, "joint", WEIGHTS), lm.trainable.grads.copy()))
    finally:
        jpo._core.set_num_threads(before)
    for logps, grads in results[1:]:
        assert np.array_equal(logps, results[0][0]) and np.array_equal(grads, results[0][1])


def forward(lm, seed, weights=None):
    forest = build_forest(GIVEN, scope="joint")
    result = lm.forward(forest, keep=weights is not None, dropout_seed=seed)
    if weights is not None:
        lm.backward(forest.entry_coefficients(weights))
    return forest.sequence_sums(result.logps)


def test_dropout_in_front_of_magnitudes(tmp_path):
    """The path sees a masked input, the rest of W the whole one, in the forward pass as in its gradient: differences of
    the pass itself, whose mask is a function of the seed, along each tensor (the norms move with B alone to second
    order here, as B is small)."""
    lm, _, _ = model(tmp_path / "base")
    adapted(lm, target_modules=("v_proj", "o_proj", "down_proj"), lora_dropout=0.3)
    assert np.array_equal(forward(lm, 7), forward(lm, 7)) and not np.array_equal(forward(lm, 7), forward(lm, 8))
    assert np.abs(forward(lm, 7) - scores(lm, GIVEN, "joint")).min() > 1e-3
    forward(lm, 7, WEIGHTS)
    for name in [name for name in lm.trainable.names if "magnitude" in name]:
        gradient, at = np.asarray(lm.trainable.grad(name), np.float64), lm.trainable.view(name).copy()
        direction = gradient / np.linalg.norm(gradient)
        ends = []
        for sign in (1, -1):
            lm.trainable.view(name)[...] = at + (sign * 0.02 * direction).astype(np.float32)
            ends.append(WEIGHTS @ forward(lm, 7))
        lm.trainable.view(name)[...] = at
        assert np.sum(gradient * direction) == pytest.approx((ends[0] - ends[1]) / 0.04, rel=2e-2), name


def test_what_is_trained_whole_stays_out_of_the_reference(tmp_path):
    lm, _, _ = model(tmp_path / "base")
    before = scores(lm, GIVEN, "joint")
    lm.add_lora(r=2, modules_to_save=["embed_tokens", "norm"], bias="all")
    assert np.array_equal(scores(lm, GIVEN, "joint"), before)
    scores(lm, GIVEN, "joint", WEIGHTS)
    lm.trainable.params -= 0.3 * lm.trainable.grads / np.linalg.norm(lm.trainable.grads)
    assert np.abs(scores(lm, GIVEN, "joint") - before).max() > 1e-3
    with lm.disable_adapter():
        assert np.array_equal(scores(lm, GIVEN, "joint"), before)
    lm.remove_adapter()
    assert np.array_equal(scores(lm, GIVEN, "joint"), before)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_layers_give_the_same_bits(tmp_path, recompute):
    lm, _, _ = model(tmp_path / "base")
    adapted(lm, target_modules="all-linear", bias="all", modules_to_save=["norm"])
    scores(lm, GIVEN, "joint", WEIGHTS)
    expected = lm.trainable.grads.copy()
    lm.trainable.grads[:] = 0
    lm.set_recompute(recompute)
    scores(lm, GIVEN, "joint", WEIGHTS)
    assert np.array_equal(lm.trainable.grads, expected) and np.abs(expected).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": "some"}, "bias: expected one of none, all, lora_only"),
        ({"modules_to_save": ["nothing"]}, "modules_to_save: expected some of .*embed_tokens.*, got 'nothing'"),
        ({"modules_to_save": ["proj"]}, "no module is left to adapt"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern: 'q_proj': expected a number from 1"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern: '\(' is no regular expression"),
        ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern: 'q_proj'"),
        ({"layers_to_transform": [9]}, "layers_to_transform: the model has no layer 9; it has 0 to 2"),
        ({"rank_pattern": [1]}, r"rank_pattern: expected a mapping of modules to numbers, got \[1\]"),
        ({"lora_alpha": "x"}, "lora_alpha: expected a number, got 'x'"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number, got nan"),
        ({"lora_dropout": None}, "lora_dropout: expected a number, got None"),
        ({"target_modules": None}, "target_modules: expected 'all-linear' or some of q_proj, .*, got None"),
    ],
)
def test_options_are_refused_by_name(options, message):
    with pytest.raises(jpo.JpoError, match=message):
        jpo.load("tiny").add_lora(**options)


def test_names_may_stand_in_one_text_as_in_a_configuration():
    lm = jpo.load("tiny")
    lm.add_lora(target_modules="q_proj, v_proj")
    assert lm.lora.target_modules == ("q_proj", "v_proj")
