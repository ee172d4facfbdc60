"""Autograd functions over jpo's kernels: sequence log-likelihoods, and the preference objectives.

On CPU tensors the C kernels read the tensors where they lie. On any other device the log-likelihoods are plain torch
(chunked where logits would be large); the objectives always run in the C core, because a step has only (B,) numbers.
Once differentiable: there is no second derivative.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import jpo
from jpo.errors import JpoError
from jpo.objectives import PreferenceLoss

_ROWS = 512  # rows of logits that linear_logps holds at once away from the CPU


def _numbers(value: Any) -> Any:
    """A tensor of few numbers as NumPy; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return value.double().numpy() if value.is_floating_point() else value.numpy()


def _wide(device: torch.device) -> torch.dtype:
    """The type of sums: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class _Preference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, policy_w: torch.Tensor, policy_l: torch.Tensor, call: Any) -> torch.Tensor:
        result = call(_numbers(policy_w), _numbers(policy_l))
        ctx.result, ctx.like = result, (policy_w, policy_l)
        ctx.gradients = [
            torch.from_numpy(gradient).to(policy.device, policy.dtype)
            for gradient, policy in ((result.grad_chosen, policy_w), (result.grad_rejected, policy_l))
        ]
        return torch.tensor(result.loss, dtype=policy_w.dtype, device=policy_w.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        d_w, d_l = ctx.gradients
        return gradient * d_w, (gradient.to(d_l.device) * d_l).to(d_l.dtype), None


def jpo_loss(
    policy_w: torch.Tensor,
    policy_l: torch.Tensor,
    ref_w: torch.Tensor | None = None,
    ref_l: torch.Tensor | None = None,
    *,
    return_outputs: bool = False,
    **settings: Any,
) -> torch.Tensor | tuple[torch.Tensor, PreferenceLoss]:
    """The mean preference loss (a scalar tensor) of (B,) sequence log-likelihoods, differentiable in the policy's two.

    policy_w, policy_l: (B,) floating tensors on any device, of the preferred and the other sequence: joint
    log-likelihoods of instruction and response give JPO (arXiv 2404.00530, equation 3), those of the response alone
    DPO. ref_w, ref_l: the reference model's; no gradient flows into them. settings: every keyword of
    `jpo.preference_loss` (loss, beta, label_smoothing, chosen_lengths, ...), tensors included. With return_outputs=True
    also what `jpo.preference_loss` returns (rewards, margins, accuracies as float64 arrays). Computed in float64;
    raises as `jpo.preference_loss` does.
    """
    for name, value in (("policy_w", policy_w), ("policy_l", policy_l)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating tensor of shape (B,), got {_kind(value)}")
    kept: list[PreferenceLoss] = []

    def call(chosen: np.ndarray[Any, Any], rejected: np.ndarray[Any, Any]) -> PreferenceLoss:
        given = {name: _numbers(value) for name, value in settings.items()}
        kept.append(jpo.preference_loss(chosen, rejected, _numbers(ref_w), _numbers(ref_l), **given))
        return kept[0]

    loss = _Preference.apply(policy_w, policy_l, call)
    return (loss, kept[0]) if return_outputs else loss


def _kind(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, torch.Tensor) else type(value).__name__


# ---- log-likelihoods ----------------------------------------------------------------------------------------------


class _SequenceLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.options = options
        return torch.from_numpy(jpo.sequence_logps(_lying(logits), _lying(labels), **options))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        logits, labels = ctx.saved_tensors
        found = jpo.sequence_logps_grad(_lying(logits), _lying(labels), _numbers(gradient), **ctx.options)
        return torch.from_numpy(found).to(logits.dtype), None, None


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, labels)
        ctx.options = options
        return torch.from_numpy(jpo.linear_logps(_lying(hidden), _lying(weight), _lying(labels), **options))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight, labels = ctx.saved_tensors
        d_hidden, d_weight = jpo.linear_logps_grad(
            _lying(hidden), _lying(weight), _lying(labels), _numbers(gradient), **ctx.options
        )
        return (
            torch.from_numpy(d_hidden).to(hidden.dtype) if ctx.needs_input_grad[0] else None,
            torch.from_numpy(d_weight).to(weight.dtype) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _lying(tensor: torch.Tensor) -> Any:
    """What jpo's kernels read: the tensor's own memory (contiguous; a transposed or expanded one is copied by
    torch)."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    try:
        import ml_dtypes
    except ImportError:
        raise JpoError("bfloat16 tensors need ml_dtypes: pip install 'jpo[torch]'") from None
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def sequence_logps(
    logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = -100, average: bool = False
) -> torch.Tensor:
    """(B,) log-likelihoods of label sequences under logits, differentiable in the logits.

    logits (B, T, V) float32, float64, float16 or bfloat16; labels (B, T) integers, shifted inside as Hugging Face's
    are; positions whose label is ignore_index are not read. float64 sums (float32 on devices without it), means with
    average=True. On CPU tensors jpo's C kernels read the logits where they lie; elsewhere torch computes the same.
    """
    options = {"ignore_index": ignore_index, "average": average}
    if logits.device.type == "cpu":
        return _SequenceLogps.apply(logits, labels, options)
    _same_device("labels", labels, logits)
    return _summed(_token_logps(logits[:, :-1].float(), labels[:, 1:], ignore_index), labels, ignore_index, average)


def linear_logps(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = -100, average: bool = False
) -> torch.Tensor:
    """(B,) log-likelihoods under softmax(hidden weight^T), differentiable in both; the logits never stand in memory.

    hidden (B, T, H), weight (V, H), labels (B, T), as for sequence_logps. On CPU tensors jpo's fused head runs, and
    once more in backward; elsewhere torch holds a few hundred rows of logits at a time and computes them again in
    backward.
    """
    options = {"ignore_index": ignore_index, "average": average}
    if hidden.device.type == "cpu":
        return _LinearLogps.apply(hidden, weight, labels, options)
    _same_device("labels", labels, hidden)
    _same_device("weight", weight, hidden)
    rows, targets = hidden[:, :-1].reshape(-1, hidden.shape[-1]), labels[:, 1:].reshape(-1)
    parts = [
        checkpoint(_chunk_logps, part, weight, target, ignore_index, use_reentrant=False)
        for part, target in _chunks(rows, targets)
    ]
    return _summed(torch.cat(parts).reshape(labels[:, 1:].shape), labels, ignore_index, average)


def _same_device(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    if tensor.device != like.device:
        raise JpoError(f"{name}: expected a tensor on {like.device}, got one on {tensor.device}")


def _chunks(rows: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(rows.split(_ROWS), targets.split(_ROWS), strict=True)


def _chunk_logps(rows: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    return _token_logps((rows @ weight.T).float(), targets, ignore_index)


def _token_logps(logits: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """log p of each target (the shape of targets), 0 where ignored."""
    scored = targets != ignore_index
    picked = logits.gather(-1, targets.masked_fill(~scored, 0).unsqueeze(-1)).squeeze(-1)
    return torch.where(scored, picked - logits.logsumexp(-1), 0.0)


def _summed(logps: torch.Tensor, labels: torch.Tensor, ignore_index: int, average: bool) -> torch.Tensor:
    sums = logps.to(_wide(logps.device)).sum(-1)
    return sums / (labels[:, 1:] != ignore_index).sum(-1) if average else sums
