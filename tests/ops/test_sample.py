"""The draw of a token against float64 NumPy, with and without cuts, on every instruction set; ties, rows that are not
finite, threads, bad arguments."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jpo import _core, generation
from jpo.errors import JpoError

NEAR = 1e-5  # relative: what float32 probabilities may move a boundary by
LAST = np.nextafter(1.0, 0.0)  # the largest uniform
CUTS = [(0, 1.0), (3, 1.0), (0, 0.6), (50, 0.9), (1500, 0.999)]  # (top_k, top_p)


@pytest.fixture
def threads():
    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


def draw(z, uniforms, temperature=1.0, top_k=0, top_p=1.0):
    """Tokens and log-likelihoods; one row of logits serves all uniforms."""
    uniforms = np.atleast_1d(np.asarray(uniforms, dtype=np.float64))
    z = np.asarray(z, dtype=np.float32)
    rows = np.ascontiguousarray(np.broadcast_to(z, (len(uniforms), z.shape[-1])))
    return _core.draw(rows, uniforms, temperature, top_k, top_p)


def weights(z, temperature, top_k, top_p):
    """What one row is drawn from (float64, not normalized), the same before top_p, and how much of it a rounding of the
    probabilities could move over the edge of top_p."""
    z = z.astype(np.float64)
    w = np.exp((z - z.max()) / temperature)
    if 0 < top_k < len(z):
        w[z < np.sort(z)[-top_k]] = 0
    if top_p == 1:
        return w, w, 0.0
    order = np.argsort(-w, kind="stable")
    sums = np.cumsum(w[order])
    keep = int(np.searchsorted(sums, top_p * sums[-1])) + 1
    edge, cut = w[order[keep - 1]], w.copy()
    cut[order[keep:]] = 0
    unsure = np.abs(sums[max(keep - 2, 0) : keep] - top_p * sums[-1]).min() < NEAR * sums[-1]
    unsure |= keep < len(z) and w[order[keep]] > edge * (1 - NEAR)
    return cut, w, edge if unsure else 0.0


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("temperature", [0.001, 0.7, 1.0, 5.0])
@pytest.mark.parametrize("v", [1, 2, 17, 1000, 49152])
def test_reference(isa, v, temperature, cut):
    rng = np.random.default_rng(v)
    n = 200 if v < 49152 else 6
    z, u = (rng.normal(size=(n, v)) * 3).astype(np.float32), rng.random(n)
    tokens, logps = _core.draw(z, u, temperature, *cut)
    assert tokens.dtype == np.int64 and logps.dtype == np.float64
    wide = z.astype(np.float64)
    want = wide[np.arange(n), tokens] - np.logaddexp.reduce(wide, axis=1)
    np.testing.assert_allclose(logps, want, rtol=2e-6, atol=2e-6)
    exact = 0
    for row, token in enumerate(tokens):
        w, whole, unsure = weights(z[row], temperature, *cut)
        sums = np.cumsum(w)
        goal, slack = u[row] * sums[-1], NEAR * sums[-1] + unsure
        assert sums[token] - w[token] - slack <= goal <= sums[token] + slack
        assert w[token] > 0 or whole[token] >= unsure * (1 - NEAR) > 0
        exact += token == np.searchsorted(sums, goal, side="right")
    assert exact >= 0.97 * n or v == 49152  # there a boundary is always near


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 1.0), (0.7, 0, 0.8), (2.0, 9, 1.0), (1.0, 12, 0.9)])
def test_frequencies(temperature, top_k, top_p):
    rng = np.random.default_rng(3)
    z, n = (rng.normal(size=40) * 1.5).astype(np.float32), 20000
    w = weights(z, temperature, top_k, top_p)[0]
    p = w / w.sum()
    counts = np.bincount(draw(z, rng.random(n), temperature, top_k, top_p)[0], minlength=40)
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p))).all() and not counts[p == 0].any()
    some = p * n > 5
    assert (((counts - n * p) ** 2)[some] / (n * p)[some]).sum() < some.sum() + 5 * np.sqrt(2 * some.sum())


@pytest.mark.parametrize("top_k, top_p", [(1, 1.0), (0, 0.05), (0, 0.5), (0, 0.97), (20, 1.0), (20, 0.9), (150, 0.999)])
@pytest.mark.parametrize("v", [200, 3000])
def test_cuts_keep_what_the_reference_keeps(isa, v, top_k, top_p):
    z = np.random.default_rng(v + 1).permutation(np.linspace(-12, 0, v)).astype(np.float32)
    w, _, unsure = weights(z, 1.5, top_k, top_p)
    sums = np.cumsum(w)
    middles = ((sums - w / 2) / sums[-1])[w > 0]  # of each kept token's interval
    assert not unsure
    np.testing.assert_array_equal(draw(z, middles, 1.5, top_k, top_p)[0], np.flatnonzero(w))
    np.testing.assert_array_equal(draw(z, [0, LAST], 1.5, top_k, top_p)[0], np.flatnonzero(w)[[0, -1]])


def test_temperature_zero_takes_the_first_largest(isa):
    rng = np.random.default_rng(0)
    z = rng.integers(-4, 5, size=(60, 700)).astype(np.float32)  # many ties
    tokens, logps = _core.draw(z, rng.random(60), 0.0, 5, 0.3)
    np.testing.assert_array_equal(tokens, z.argmax(1))
    np.testing.assert_allclose(logps, z.max(1) - np.logaddexp.reduce(z.astype(np.float64), axis=1), rtol=2e-6)


def test_ties():
    def drawn(z, **options):
        return sorted(set(draw(z, np.linspace(0, LAST, 999), **options)[0].tolist()))

    assert drawn([3, 1, 2, 2, 2, 0], top_k=2) == [0, 2, 3, 4]  # all that equal the second
    assert drawn([0.0, -0.0, -1], top_k=1) == drawn([-0.0, 0.0, -1], top_k=1) == [0, 1]
    assert drawn([-1, -2, -2, -9], top_k=2) == [0, 1, 2]
    assert drawn([0, 1, 1, 1, 1], top_p=0.4) == [1, 2]  # of equals the first
    assert drawn([0, 1, 1, 1, 1], top_p=1e-300) == [1]
    assert drawn([0, 0], top_p=0.5) == [0] and drawn([0, 0], top_p=0.5000001) == [0, 1]  # reaching the share is enough
    assert drawn([2, 1, 1, 0], top_k=2, top_p=0.7) == [0, 1]  # of what top_k left: 0.576 + 0.212
    assert drawn([2, 1, 1, 0], top_k=2, top_p=0.8) == [0, 1, 2]


@pytest.mark.parametrize("v", [17, 1000, 49152])
def test_equal_logits(isa, v):
    u, z = (np.arange(40) + 0.5) / 40, np.full(v, -7.25)
    for top_k in (0, 1, 5, v // 2):  # ties with the k-th stay: all of them
        np.testing.assert_array_equal(draw(z, u, 1.0, top_k)[0], np.floor(u * v))
    for top_p in (0.001, 0.37, 0.9):
        kept = np.ceil(top_p * v)
        np.testing.assert_array_equal(draw(z, u, 0.7, 5, top_p)[0], np.floor(u * kept))
        assert draw(z, LAST, 1.0, 0, top_p)[0] == kept - 1


@pytest.mark.parametrize("options", [(1.0, 0, 1.0), (5.0, 30, 1.0), (1e300, 0, 0.9), (0.7, 99, 0.999)])
def test_infinitely_small_logits_are_never_drawn(isa, options):
    z = np.random.default_rng(5).normal(size=100).astype(np.float32)
    z[::2] = z[-3:] = z[:20] = -np.inf
    tokens, logps = draw(z, [*np.linspace(0, 1, 2000, endpoint=False), LAST], *options)
    assert np.isfinite(z[tokens]).all() and np.isfinite(logps).all()
    if options == (1.0, 0, 1.0):
        np.testing.assert_array_equal(np.unique(tokens), np.flatnonzero(np.isfinite(z)))
        assert tokens[0] == 21 and tokens[-1] == 95
    z = (np.random.default_rng(6).normal(size=(400, 250)) * 8).astype(np.float32)
    z[:, 200:] = -np.inf
    tokens, _ = _core.draw(z, np.full(400, LAST), *options)  # sums in another order fall short of LAST of the total
    assert (tokens < 200).all()


def test_extreme_logits_and_temperatures(isa):
    z = np.array([-3e38, 3e38, 0, 3e38, 1, -np.inf], dtype=np.float32)
    u = np.linspace(0, LAST, 64)
    for temperature in (5e-324, 0.001, 1.0):
        tokens, logps = draw(z, u, temperature)
        assert set(tokens.tolist()) == {1, 3}
        np.testing.assert_allclose(logps, np.log(0.5))
    near = np.array([1, np.nextafter(np.float32(1), np.float32(0)), -500], dtype=np.float32)
    assert set(draw(near, u, 5e-324)[0].tolist()) == {0} and set(draw(near, u, 1e-3)[0].tolist()) == {0, 1}
    assert set(draw(near, u, 1.7e308)[0].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("options", [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 4, 0.9)])
def test_rows_that_are_not_finite(isa, options):
    message = "^the model's logits are not finite: its weights or adapter hold NaN or infinity$"
    for v in (1, 5, 1000):
        for bad in (np.nan, np.inf):
            for place in (0, v // 2, v - 1):
                z = np.zeros((3, v), dtype=np.float32)
                z[1, place] = bad
                with pytest.raises(ValueError, match=message):
                    _core.draw(z, np.full(3, 0.5), *options)
        z = np.zeros((3, v), dtype=np.float32)
        z[2] = -np.inf
        with pytest.raises(ValueError, match=message):
            _core.draw(z, np.full(3, 0.5), *options)
        _core.draw(z[:2], np.full(2, 0.5), *options)
    with pytest.raises(JpoError, match=message):
        generation._draw(np.full((1, 5), np.nan, np.float32), [stream()], 1.0, 1.0, 0)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_row_knows_neither_threads_nor_other_rows(threads, cut):
    rng = np.random.default_rng(7)
    z, u = (rng.normal(size=(33, 5000)) * 3).astype(np.float32), rng.random(33)
    threads(1)
    tokens, logps = _core.draw(z, u, 0.9, *cut)
    assert len(set(tokens.tolist())) > 10
    for count in (1, 2, 3):
        threads(count)
        for rows in (slice(0, 33), slice(4, 5), slice(32, None, -1)):
            got = _core.draw(np.ascontiguousarray(z[rows]), np.ascontiguousarray(u[rows]), 0.9, *cut)
            np.testing.assert_array_equal(got[0], tokens[rows])
            np.testing.assert_array_equal(got[1], logps[rows])


def test_draws_of_several_threads_do_not_share_scratch():
    rng = np.random.default_rng(8)
    z, u = (rng.normal(size=(6, 8, 20000)) * 3).astype(np.float32), rng.random((6, 8))
    want = [_core.draw(z[i], u[i], 0.9, 100, 0.95) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(10):
            got = list(pool.map(lambda i: _core.draw(z[i], u[i], 0.9, 100, 0.95), range(6)))
            np.testing.assert_array_equal(got, want)


def test_no_rows():
    tokens, logps = _core.draw(np.zeros((0, 5), np.float32), np.zeros(0), 1.0, 2, 0.5)
    assert tokens.shape == logps.shape == (0,)


def test_bad_arguments():
    z, u = np.zeros((2, 6), dtype=np.float32), np.zeros(2)
    for message, arguments in (
        ("logits", (z.astype(np.float64), u, 1.0, 0, 1.0)),
        ("logits", (z.tolist(), u, 1.0, 0, 1.0)),
        ("logits", (z[0], u, 1.0, 0, 1.0)),
        ("logits", (z[:, ::2], u, 1.0, 0, 1.0)),
        ("logits", (z.astype(">f4"), u, 1.0, 0, 1.0)),
        ("uniforms", (z, u.astype(np.float32), 1.0, 0, 1.0)),
        ("uniforms", (z, np.zeros(4)[::2], 1.0, 0, 1.0)),
        ("uniforms", (z, np.zeros((2, 1)), 1.0, 0, 1.0)),
        ("3 uniforms do not fit logits", (z, np.zeros(3), 1.0, 0, 1.0)),
        ("at least one logit", (z[:, :0].copy(), u, 1.0, 0, 1.0)),
        (r"uniforms\[1\]", (z, np.array([0.0, 1.0]), 1.0, 0, 1.0)),
        (r"uniforms\[0\]", (z, np.array([-1e-9, 0.0]), 1.0, 0, 1.0)),
        (r"uniforms\[1\]", (z, np.array([0.0, np.nan]), 1.0, 0, 1.0)),
        ("temperature", (z, u, -0.1, 0, 1.0)),
        ("temperature", (z, u, np.inf, 0, 1.0)),
        ("temperature", (z, u, np.nan, 0, 1.0)),
        ("top_k", (z, u, 1.0, -1, 1.0)),
        ("top_p", (z, u, 1.0, 0, 0.0)),
        ("top_p", (z, u, 1.0, 0, 1.0001)),
        ("top_p", (z, u, 1.0, 0, np.nan)),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            _core.draw(*arguments)


def stream():
    return generation._Stream(0, 0, np.random.Generator(np.random.Philox(key=1)), 8)


def test_a_stream_spends_one_number_a_random_token_and_none_a_greedy_one():
    z = np.random.default_rng(9).normal(size=(2, 50)).astype(np.float32)
    streams, peer = [stream(), stream()], stream()
    for _ in range(5):
        generation._draw(z, streams, 0, 1.0, 0)
        tokens, _ = generation._draw(z, streams, 1.0, 1.0, 10**30)
        np.testing.assert_array_equal(tokens, _core.draw(z, np.full(2, peer.generator.random()), 1.0, 0, 1.0)[0])
