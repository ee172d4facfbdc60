"""jpo.torch beside plain torch: values, gradients, types, devices' fallback; every loss through autograd."""

import numpy as np
import pytest
import torch
from objective.test_losses import B, arguments, batch

import jpo
from jpo.errors import JpoError
from jpo.objectives import LOSSES
from jpo.torch import functions, jpo_loss, linear_logps, sequence_logps

LABELS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, -100, 6, 5], [-100, 3, 5, 8, -100]])
V, H = 11, 6


def plain(logits, labels, average=False):
    scored = labels[:, 1:] != -100
    logps = torch.log_softmax(logits[:, :-1].double(), -1)
    picked = logps.gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    sums = torch.where(scored, picked, 0.0).sum(1)
    return sums / scored.sum(1) if average else sums


def tensor(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_and_its_gradients_through_autograd(name):
    policy, ref, lengths = batch(3)
    ours, _ = arguments(name, policy, ref, lengths)
    if name == "exo_pair":
        assert ours["label_smoothing"] > 0
    engine = jpo.preference_loss(policy[0], policy[1], loss=name, **ours)
    w, l = (torch.tensor(side, requires_grad=True) for side in policy)
    refs = [torch.from_numpy(ours.pop(key)) if key in ours else None for key in ("ref_chosen", "ref_rejected")]
    given = {key: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for key, v in ours.items()}
    loss, outputs = jpo_loss(w, l, *refs, loss=name, return_outputs=True, **given)
    (3 * loss).backward()
    assert loss.item() == engine.loss == outputs.loss
    np.testing.assert_array_equal(outputs.margins, engine.margins)
    np.testing.assert_allclose(w.grad.numpy(), 3 * engine.grad_chosen, rtol=1e-15)
    np.testing.assert_allclose(l.grad.numpy(), 3 * engine.grad_rejected, rtol=1e-15)


def test_the_sigmoid_loss_is_torchs_own():
    policy, ref, _ = batch(5)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        w, l = (torch.tensor(side, dtype=dtype, requires_grad=True) for side in policy)
        rw, rl = (torch.tensor(side, dtype=dtype) for side in ref)
        theirs = -torch.nn.functional.logsigmoid(0.1 * ((w - rw) - (l - rl))).mean()
        expected = torch.autograd.grad(theirs, (w, l))
        loss = jpo_loss(w, l, rw, rl)
        got = torch.autograd.grad(loss, (w, l))
        assert loss.dtype == dtype and all(g.dtype == dtype for g in got)
        torch.testing.assert_close(loss, theirs, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_no_gradient_reaches_the_reference_and_wrong_arguments_are_named():
    w, l = tensor(B), tensor(B, seed=1)
    rw, rl = tensor(B, seed=2), tensor(B, seed=3)
    jpo_loss(w, l, rw, rl).backward()
    assert rw.grad is None and rl.grad is None and w.grad.abs().sum() > 0
    with pytest.raises(TypeError, match="policy_w: expected a floating tensor"):
        jpo_loss(torch.arange(3), l)
    with pytest.raises(JpoError, match="needs ref_chosen"):
        jpo_loss(w, l)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
def test_sequence_logps(dtype, tolerance, average):
    logits = tensor(3, 5, V, dtype=dtype)
    theirs = plain(logits, LABELS, average)
    (expected,) = torch.autograd.grad((theirs * torch.tensor([1.0, -2.0, 0.5])).sum(), logits)
    ours = sequence_logps(logits, LABELS, average=average)
    (got,) = torch.autograd.grad((ours * torch.tensor([1.0, -2.0, 0.5])).sum(), logits)
    assert ours.dtype == torch.float64 and got.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_linear_logps(dtype, tolerance):
    hidden, weight = tensor(3, 5, H, dtype=dtype), tensor(V, H, dtype=dtype, seed=1)
    theirs = plain(hidden @ weight.T, LABELS)
    c = torch.tensor([1.0, -2.0, 0.5])
    expected = torch.autograd.grad((theirs * c).sum(), (hidden, weight))
    ours = linear_logps(hidden, weight, LABELS)
    got = torch.autograd.grad((ours * c).sum(), (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight = tensor(3, 5, H), tensor(V, H, seed=1).detach()
    linear_logps(hidden, weight, LABELS).sum().backward()
    assert weight.grad is None and hidden.grad.abs().sum() > 0


def test_gradcheck():
    logits, weight = tensor(3, 5, V, dtype=torch.float64), tensor(V, H, dtype=torch.float64, seed=1)
    assert torch.autograd.gradcheck(lambda z: sequence_logps(z, LABELS), (logits,))
    hidden = tensor(3, 5, H, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_logps(h, w, LABELS), (hidden, weight))


def test_the_path_of_other_devices_equals_the_kernels(monkeypatch):
    """No other device is at hand: the same code runs here on CPU tensors, and on the meta device for its shapes."""
    hidden, weight = tensor(3, 5, H), tensor(V, H, seed=1)
    monkeypatch.setattr(functions, "_ROWS", 4)  # several chunks
    rows, targets = hidden[:, :-1].reshape(-1, H), LABELS[:, 1:].reshape(-1)
    parts = [functions._chunk_logps(r, weight, t, -100) for r, t in functions._chunks(rows, targets)]
    found = functions._summed(torch.cat(parts).reshape(3, 4), LABELS, -100, False)
    torch.testing.assert_close(found, linear_logps(hidden, weight, LABELS), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(linear_logps(hidden, weight, LABELS).sum(), (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), (hidden, weight)), expected, rtol=1e-4, atol=1e-5)
    for call in (
        lambda: sequence_logps(tensor(3, 5, V).to("meta"), LABELS.to("meta")),
        lambda: linear_logps(hidden.to("meta"), weight.to("meta"), LABELS.to("meta")),
    ):
        assert call().shape == (3,) and call().device.type == "meta"
    with pytest.raises(JpoError, match="labels: expected a tensor on meta"):
        sequence_logps(tensor(3, 5, V).to("meta"), LABELS)


def test_cpu_tensors_are_read_where_they_lie():
    logits = tensor(3, 5, V).detach()
    assert functions._lying(logits).ctypes.data == logits.data_ptr()
    half = logits.bfloat16()
    assert functions._lying(half).ctypes.data == half.data_ptr()
