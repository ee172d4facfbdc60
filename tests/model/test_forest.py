"""The forest against each sequence alone; its rows against the distinct segments; generation over the cache."""

import os

import numpy as np
import pytest

import jpo
from jpo import _core
from jpo.data.forest import build_forest
from jpo.errors import JpoError

SEQUENCES = [
    ((5, 6, 7), (8, 9, 10, 11)),
    ((5, 6, 7), (12, 13)),
    ((20, 21), (8, 9)),
    ((5, 6, 7), (8, 9, 10, 11)),
    ((20, 21), (30,)),
]


# enough distinct rows that no compute type falls back to few rows' float32
_ids = np.random.default_rng(7).integers(3, 90, (40, 12)).tolist()
MANY = [(tuple(ids[:3]), tuple(ids[3:])) for ids in _ids]


def with_adapter(model):
    model.add_lora(r=3, target_modules="all-linear")
    model.trainable.params[:] = np.random.default_rng(3).normal(size=model.trainable.params.size) * 0.05
    return model


@pytest.fixture
def lm():
    return with_adapter(jpo.load("tiny"))


@pytest.mark.parametrize("scope", ["joint", "response"])
def test_forest_equals_sequences_alone(lm, scope):
    forest = build_forest(SEQUENCES, scope)
    assert forest.rows == 3 + 4 + 2 + 2 + 2 + 1  # distinct segments
    together = forest.sequence_sums(lm.forward(forest).logps)
    alone = [build_forest([s], scope) for s in SEQUENCES]
    np.testing.assert_allclose(together, [f.sequence_sums(lm.forward(f).logps)[0] for f in alone], rtol=1e-6)
    c = np.array([0.3, -1.0, 0.7, 2.0, -0.4])
    lm.forward(forest, keep=True)
    lm.backward(forest.entry_coefficients(c))
    whole = lm.trainable.grads.copy()
    lm.trainable.grads[:] = 0
    for f, weight in zip(alone, c, strict=True):
        lm.forward(f, keep=True)
        lm.backward(f.entry_coefficients(np.array([weight])))
    assert np.linalg.norm(whole - lm.trainable.grads) <= 1e-5 * np.linalg.norm(whole)


def test_depth_three(lm):
    """root -> child -> grandchild and siblings, straight to the engine."""
    tokens = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.int32)
    segments = np.array([[0, 2, -1, 0], [2, 3, 0, 2], [5, 2, 1, 5], [7, 2, 0, 2]], dtype=np.int32)
    paths = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 7, 8]]
    lm._core.forward(
        tokens, segments, np.array([6, 8], np.int32), np.array([3, 4], np.int32), True, False, False, False, 0
    )
    got = lm._core.logits(np.array([6, 8], np.int32))
    for row, path in zip(got, paths, strict=True):
        np.testing.assert_allclose(row, lm.logits([int(tokens[i]) for i in path])[-1], rtol=1e-4, atol=1e-5)


def loaded(compute):
    try:
        return jpo.load("tiny", compute=compute)
    except JpoError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("compute", ["float32", "int16", "bfloat16"])
def test_results_do_not_depend_on_threads(compute, full):
    model = loaded(compute)
    if full:
        model.enable_full()
    else:
        with_adapter(model)
    before = jpo.get_num_threads()
    for sequences in (SEQUENCES, MANY):
        forest, results = build_forest(sequences, "joint"), []
        for threads in (1, 2, 3):
            jpo.set_num_threads(threads)
            model.trainable.grads[:] = 0
            logps = model.forward(forest, keep=True).logps
            model.backward(np.linspace(-1, 1, len(logps)))
            results.append((logps.copy(), model.trainable.grads.copy()))
        jpo.set_num_threads(before)
        for logps, grads in results[1:]:
            np.testing.assert_array_equal(logps, results[0][0])
            np.testing.assert_array_equal(grads, results[0][1])


@pytest.mark.parametrize("compute", ["int16", "bfloat16"])
def test_other_computes_are_close(compute):
    other = loaded(compute)
    for forest in (build_forest(SEQUENCES, "joint"), build_forest(MANY, "joint")):
        want = jpo.load("tiny").forward(forest).logps
        np.testing.assert_allclose(other.forward(forest).logps, want, atol=2e-3 if compute == "int16" else 5e-2)


@pytest.mark.parametrize("compute", ["int16", "bfloat16"])
def test_other_computes_train_every_weight(compute):
    """Gradients of all weights are near float32's, and not float32's own: the compute type is in use."""
    gradients = []
    for model in (jpo.load("tiny"), loaded(compute)):
        model.enable_full()
        forest = build_forest(MANY, "joint")
        logps = model.forward(forest, keep=True).logps
        model.backward(np.full(len(logps), 1 / len(logps)))
        gradients.append(model.trainable.grads.copy())
    distance = np.linalg.norm(gradients[1] - gradients[0]) / np.linalg.norm(gradients[0])
    assert 1e-5 < distance < (5e-3 if compute == "int16" else 5e-2)


def test_bad_forests(lm):
    def run(tokens, segments, rows=(), targets=()):
        lm._core.forward(
            *(np.array(part, dtype=np.int32) for part in (tokens, segments, rows, targets)),
            True,
            False,
            False,
            False,
            0,
        )

    run([1, 2], [[0, 2, -1, 0]], [0], [2])
    for message, arguments in {
        "vocabulary": ([1, 10**6], [[0, 2, -1, 0]]),
        "do not follow": ([1, 2], [[1, 1, -1, 0]]),
        "parent": ([1, 2], [[0, 2, 0, 0]]),
        "first_position": ([1, 2], [[0, 2, -1, 3]]),
        "cover": ([1, 2], [[0, 1, -1, 0]]),
        "entry_row": ([1, 2], [[0, 2, -1, 0]], [2], [0]),
        "entry_target": ([1, 2], [[0, 2, -1, 0]], [0], [-1]),
        "empty": ([], np.zeros((0, 4), dtype=int)),
    }.items():
        with pytest.raises(ValueError, match=message):
            run(*arguments)
    with pytest.raises(ValueError, match="no token to score"):
        build_forest([((1,), ())], "response")
    with pytest.raises(ValueError, match="forward pass"):
        lm._core.backward(np.zeros(1))


def test_generation(lm):
    prompts = ["hello there", "a"]
    greedy = lm.generate(prompts, temperature=0, max_new_tokens=12)
    for prompt, (completion,) in zip(prompts, greedy, strict=True):
        ids = lm.tokenizer.prompt_ids(prompt)
        for step, token in enumerate(completion.token_ids):
            assert token == int(lm.logits([*ids, *completion.token_ids[:step]])[-1].argmax())
        want = lm.sequence_logps_ids([(ids, completion.token_ids)])[0]
        assert completion.logp == pytest.approx(want, rel=1e-4)
    sampled = lm.generate(prompts, n=3, temperature=1.0, top_k=20, top_p=0.9, max_new_tokens=8, seed=5)
    assert sampled == lm.generate(prompts, n=3, temperature=1.0, top_k=20, top_p=0.9, max_new_tokens=8, seed=5)
    (alone,) = lm.generate(prompts[1:], n=3, temperature=1.0, top_k=20, top_p=0.9, max_new_tokens=8, seed=5, ids=[1])
    assert [c.token_ids for c in alone] == [c.token_ids for c in sampled[1]]
    if _core.system_info()["isa"] in (
        "avx2",
        "avx512",
    ):  # elsewhere OpenBLAS serves, whose sums depend on a call's shape
        assert alone == sampled[1]
    else:
        np.testing.assert_allclose([c.logp for c in alone], [c.logp for c in sampled[1]], rtol=1e-6)
    assert len({tuple(c.token_ids) for c in sampled[0]}) > 1
    text = lm.generate(["hello"], temperature=0, max_new_tokens=12)[0][0].text
    stopped = lm.generate(["hello"], temperature=0, max_new_tokens=12, stop=[text[3:5]])[0][0]
    assert stopped.finish_reason == "stop" and stopped.text == text[: text.index(text[3:5])]
    for name, value in {"temperature": -1, "top_p": 0, "top_k": -1, "n": 0, "max_new_tokens": 0}.items():
        with pytest.raises(JpoError, match=name):
            lm.generate(prompts, **{name: value})


def test_adapters_round_trip_and_merge(lm, tmp_path):
    before = lm.sequence_logps(["hello"], [" there"])
    lm.save_adapter(tmp_path / "adapter", {"note": 1})
    other = jpo.load("tiny")
    plain = other.sequence_logps(["hello"], [" there"])
    assert other.load_adapter(tmp_path / "adapter")["note"] == 1
    np.testing.assert_array_equal(other.sequence_logps(["hello"], [" there"]), before)
    with other.disable_adapter():
        np.testing.assert_array_equal(other.sequence_logps(["hello"], [" there"]), plain)
    other.merge(tmp_path / "merged")
    np.testing.assert_allclose(jpo.load(tmp_path / "merged").sequence_logps(["hello"], [" there"]), before, rtol=1e-5)


def test_storages():
    want = jpo.load("tiny").sequence_logps(["hello"], [" there"])
    for storage, tolerance in {"as-stored": 0, "float32": 1e-6, "bfloat16": 2e-2, "q8_0": 2e-2}.items():
        np.testing.assert_allclose(
            jpo.load("tiny", storage=storage).sequence_logps(["hello"], [" there"]), want, rtol=tolerance
        )
    with pytest.raises(JpoError, match="storage"):
        jpo.load("tiny", storage="int3")


def test_a_fork_can_compute(lm):
    want = lm.sequence_logps(["hello"], [" there"])
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(lm.sequence_logps(["hello"], [" there"]), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_adamw_against_its_definition():
    rng = np.random.default_rng(0)
    p, g = rng.normal(size=(2, 100)).astype(np.float32)
    m, v, want = np.zeros_like(p), np.zeros_like(p), p.astype(np.float64)
    mm = vv = np.zeros(100)
    for step in (1, 2, 3):
        _core.adamw_step(p, g, m, v, lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=step, scale=0.5)
        gradient = g.astype(np.float64) * 0.5
        mm, vv = 0.9 * mm + 0.1 * gradient, 0.95 * vv + 0.05 * gradient**2
        want -= 1e-2 * 0.1 * want
        want -= 1e-2 * (mm / (1 - 0.9**step)) / (np.sqrt(vv / (1 - 0.95**step)) + 1e-8)
    np.testing.assert_allclose(p, want, rtol=1e-5, atol=1e-6)
    assert _core.grad_norm(g) == pytest.approx(np.linalg.norm(g.astype(np.float64)), rel=1e-6)
    with pytest.raises(ValueError, match="grads"):
        _core.adamw_step(p, g[:5].copy(), m, v, lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=1)
    with pytest.raises(TypeError, match="params"):
        _core.adamw_step(p[::2], g, m, v, lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=1)
