"""Public log-likelihood kernels against float64 NumPy, on every instruction set; gradients; bad input."""

import ml_dtypes
import numpy as np
import pytest

import jpo


def reference(z, labels, ignore=-100):
    z = np.asarray(z, dtype=np.float64)
    out = np.zeros((z.shape[0], z.shape[1] - 1))
    for b in range(z.shape[0]):
        for t in range(z.shape[1] - 1):
            if labels[b, t + 1] != ignore:
                out[b, t] = z[b, t, labels[b, t + 1]] - np.logaddexp.reduce(z[b, t])
    return out


def batch(v, dtype=np.float32, scale=5.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, v, size=(3, 5))
    labels[0, 3] = labels[2, 0] = labels[2, 4] = -100
    return (rng.normal(size=(3, 5, v)) * scale).astype(dtype), labels


@pytest.mark.parametrize("v", [1, 2, 15, 16, 17, 70, 1023, 2500])
def test_sequence_logps(isa, v):
    z, labels = batch(v)
    want = reference(z, labels)
    np.testing.assert_allclose(jpo.sequence_logps(z, labels, token_logps=True), want, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(jpo.sequence_logps(z, labels), want.sum(1), rtol=2e-6, atol=4e-6)
    counts = (labels[:, 1:] != -100).sum(1)
    np.testing.assert_allclose(jpo.sequence_logps(z, labels, average=True), want.sum(1) / counts, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_types(isa, dtype):
    z, labels = batch(33, dtype)
    want = reference(z.astype(np.float64), labels).sum(1)
    np.testing.assert_allclose(jpo.sequence_logps(z, labels), want, rtol=1e-12 if dtype == np.float64 else 3e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("average", [False, True])
def test_sequence_logps_grad(isa, dtype, average):
    z, labels = batch(37, dtype)
    c = np.array([0.5, -2.0, 1.5])
    got = jpo.sequence_logps_grad(z, labels, c, average=average)
    zz = z.astype(np.float64)
    p = np.exp(zz - np.logaddexp.reduce(zz, axis=-1, keepdims=True))
    want = np.zeros(z.shape)
    counts = (labels[:, 1:] != -100).sum(1)
    for b in range(3):
        for t in range(4):
            if labels[b, t + 1] != -100:
                row = -p[b, t]
                row[labels[b, t + 1]] += 1
                want[b, t] = c[b] * row / (counts[b] if average else 1)
    np.testing.assert_allclose(got, want, atol=1e-12 if dtype == np.float64 else 1e-6)
    assert not got[:, -1].any() and not got[0, 2].any()
    if dtype != np.float16:
        copy = z.copy()
        assert jpo.sequence_logps_grad(copy, labels, c, average=average, out=copy) is copy
        np.testing.assert_array_equal(copy, got)


def test_extremes(isa):
    z, labels = batch(40)
    z[0, 0, :] = -np.inf
    z[0, 0, labels[0, 1]] = 3.0
    assert jpo.sequence_logps(z, labels, token_logps=True)[0, 0] == 0
    z[0, 1, labels[0, 2]] = -np.inf
    assert jpo.sequence_logps(z, labels)[0] == -np.inf
    z, labels = batch(40, scale=1e37)
    np.testing.assert_allclose(jpo.sequence_logps(z, labels), reference(z, labels).sum(1), rtol=1e-6)
    for bad in (np.nan, np.inf):
        z, labels = batch(40)
        z[1, 2, 7] = bad
        z[0, 2, 5] = z[2, 4, 1] = bad  # unscored rows: never read
        got = jpo.sequence_logps(z, labels)
        assert np.isnan(got[1]) and np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize("v", [5, 1024, 3001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_linear_logps(isa, v, dtype):
    rng = np.random.default_rng(1)
    _, labels = batch(v)
    hidden, weight = rng.normal(size=(3, 5, 32)).astype(dtype), (rng.normal(size=(v, 32)) * 0.5).astype(dtype)
    z = hidden.astype(np.float64) @ weight.astype(np.float64).T
    tolerance = 1e-10 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(
        jpo.linear_logps(hidden, weight, labels), reference(z, labels).sum(1), rtol=tolerance, atol=tolerance
    )
    c = np.array([0.5, -2.0, 1.5])
    d_hidden, d_weight = jpo.linear_logps_grad(hidden, weight, labels, c)
    d_z = jpo.sequence_logps_grad(z, labels, c)
    np.testing.assert_allclose(d_hidden, d_z @ weight.astype(np.float64), atol=tolerance)
    want = np.einsum("btv,bth->vh", d_z, hidden.astype(np.float64))
    np.testing.assert_allclose(d_weight, want, atol=tolerance * 5)


def same_bits_with_threads(compute):
    """compute() -> arrays, with 1, 2 and 3 threads."""
    before, results = jpo.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            jpo.set_num_threads(threads)
            results.append(compute())
    finally:
        jpo.set_num_threads(before)
    for arrays in results[1:]:
        for found, first in zip(arrays, results[0], strict=True):
            np.testing.assert_array_equal(found, first)


def test_threads_give_the_same_bits():
    z, labels = batch(5000)
    same_bits_with_threads(lambda: (jpo.sequence_logps(z, labels), jpo.sequence_logps_grad(z, labels, np.ones(3))))


def test_threads_give_the_same_bits_in_the_fused_head():
    """More rows than a block holds, more words than a tile."""
    rng = np.random.default_rng(2)
    hidden, weight = (rng.normal(size=size).astype(np.float32) for size in ((2, 240, 32), (1100, 32)))
    labels = rng.integers(0, len(weight), size=hidden.shape[:2])
    same_bits_with_threads(
        lambda: (
            jpo.linear_logps(hidden, weight, labels),
            *jpo.linear_logps_grad(hidden, weight, labels, np.array([1.0, -0.5])),
        )
    )


def test_bad_input():
    z, labels = batch(9)
    read_only = z.copy()
    read_only.flags.writeable = False
    wide = np.zeros(z.size + 9, dtype=np.float32)
    wide[: z.size] = z.ravel()
    overlapping = (wide[: z.size].reshape(z.shape), wide[9:].reshape(z.shape))
    grad = np.ones(3)
    cases = [
        (ValueError, "logits", lambda: jpo.sequence_logps(z[0], labels)),
        (ValueError, "contiguous", lambda: jpo.sequence_logps(z[:, :, ::2], labels)),
        (TypeError, "byte order", lambda: jpo.sequence_logps(z.astype(">f4"), labels)),
        (TypeError, "logits", lambda: jpo.sequence_logps(z.astype(np.int32), labels)),
        (TypeError, "logits", lambda: jpo.sequence_logps(z.tolist(), labels)),
        (ValueError, r"labels\[0, 1\] = 9", lambda: jpo.sequence_logps(z, np.full((3, 5), 9))),
        (ValueError, "no token to score", lambda: jpo.sequence_logps(z, np.full((3, 5), -100))),
        (ValueError, "labels", lambda: jpo.sequence_logps(z, labels[:, :4])),
        (TypeError, "labels", lambda: jpo.sequence_logps(z, labels.astype(float))),
        (ValueError, "empty", lambda: jpo.sequence_logps(z[:0], labels[:0])),
        (ValueError, "grad", lambda: jpo.sequence_logps_grad(z, labels, np.ones(4))),
        (ValueError, "read-only", lambda: jpo.sequence_logps_grad(z, labels, grad, out=read_only)),
        (ValueError, "out", lambda: jpo.sequence_logps_grad(z, labels, grad, out=z.astype(np.float64))),
        (ValueError, "overlaps", lambda: jpo.sequence_logps_grad(overlapping[0], labels, grad, out=overlapping[1])),
        (ValueError, "weight", lambda: jpo.linear_logps(z, np.zeros((4, 8), np.float32), labels)),
        (TypeError, "hidden and weight", lambda: jpo.linear_logps(z, np.zeros((9, 9)), labels)),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_buffer_protocol():
    import array

    z, labels = batch(4)
    flat = memoryview(array.array("f", z.ravel().tolist())).cast("B").cast("f", z.shape)
    np.testing.assert_array_equal(jpo.sequence_logps(flat, labels), jpo.sequence_logps(z, labels))
