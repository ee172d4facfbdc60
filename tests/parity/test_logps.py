"""The kernels over NumPy buffers against torch's log_softmax, gather and autograd; torch tensors read without a
copy."""

import numpy as np
import pytest
import torch

import jpo

SHAPE = (2, 7, 1031)


def case(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, SHAPE[2], SHAPE[:2], generator=generator)
    labels[0, :3] = -100
    labels[1, 5] = -100
    return logits, labels


def reference(logits, labels, average=False):
    wide = logits.double()
    tokens = torch.log_softmax(wide[:, :-1], -1).gather(2, labels[:, 1:].clamp_min(0)[..., None])[..., 0]
    scored = labels[:, 1:] != -100
    total = (tokens * scored).sum(1)
    return total / scored.sum(1) if average else total


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_logps_of_torch_tensors(dtype, average):
    logits, labels = case(dtype)
    ours = jpo.sequence_logps(logits, labels, average=average)
    np.testing.assert_allclose(ours, reference(logits, labels, average).numpy(), rtol=1e-6)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_autograd_s(dtype, average):
    logits, labels = case(dtype)
    wide = logits.detach().clone().double().requires_grad_()
    weights = torch.tensor([0.7, -1.9], dtype=torch.float64)
    (weights * reference(wide, labels, average)).sum().backward()
    ours = jpo.sequence_logps_grad(logits.numpy(), labels.numpy(), weights.numpy(), average=average)
    np.testing.assert_allclose(ours, wide.grad.numpy(), rtol=2e-5, atol=1e-7)


def test_linear_logps_and_gradient():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn((2, 7, 48), generator=generator)
    weight = torch.randn((SHAPE[2], 48), generator=generator)
    _, labels = case(torch.float32)
    ours = jpo.linear_logps(hidden, weight, labels)
    wide = hidden.double().requires_grad_()
    expected = reference(wide @ weight.double().T, labels)
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-5)


def test_bfloat16_tensors_are_read_where_they_lie():
    logits, labels = case(torch.bfloat16)
    ours = jpo.sequence_logps(logits, labels)
    np.testing.assert_allclose(ours, reference(logits.float(), labels).numpy(), rtol=1e-6)
    weights = torch.tensor([0.5, -2.0], dtype=torch.bfloat16)
    same = jpo.sequence_logps_grad(logits.float(), labels, [0.5, -2.0])
    np.testing.assert_allclose(jpo.sequence_logps_grad(logits, labels, weights.float()), same, rtol=1e-6, atol=1e-9)
    policy = torch.tensor([-3.0, -5.5], dtype=torch.bfloat16)
    got = jpo.preference_loss(policy, policy - 1, policy - 2, policy - 2.5)
    assert got.loss == jpo.preference_loss([-3.0, -5.5], [-4.0, -6.5], [-5.0, -7.5], [-5.5, -8.0]).loss


def test_a_tensor_that_requires_grad_is_refused_with_the_remedy():
    """torch's own rule for NumPy: a gradient must not be lost silently. The remedy that is named works."""
    logits, labels = case(torch.float32)
    logits = logits.requires_grad_()
    for call in (
        lambda: jpo.sequence_logps(logits, labels),
        lambda: jpo.sequence_logps_grad(logits, labels, [1.0, 1.0]),
        lambda: jpo.preference_loss(logits[:, 0, 0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ):
        with pytest.raises(TypeError, match=r"requires grad.*pass (logits|policy_chosen)\.detach\(\)"):
            call()
    gradient = jpo.sequence_logps_grad(logits.detach(), labels, [1.0, 1.0])
    logits.backward(torch.from_numpy(gradient))
    wide = logits.detach().double().requires_grad_()
    reference(wide, labels).sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), wide.grad.numpy(), rtol=2e-5, atol=1e-7)
