"""AdamW over the flat parameter vector, and the learning-rate schedules of transformers' get_scheduler."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jpo import _core
from jpo.train.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, total: int, warmup: int) -> float:
    """The rate of optimizer step `step`, from 0, of `total`: linear warm-up, then the schedule down to 0."""
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * max(0.0, 1.0 - progress)
    return config.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101); moments are (P,) float32 vectors."""

    def __init__(self, params: np.ndarray[Any, Any], config: TrainingConfig):
        self.params, self.config = params, config
        self.m, self.v = np.zeros_like(params), np.zeros_like(params)
        self.count = 0

    def step(self, grads: np.ndarray[Any, Any], rate: float) -> float:
        """Clip, update, zero the gradients; returns their norm before clipping."""
        norm = _core.grad_norm(grads)
        self.update(grads, rate, norm)
        grads[:] = 0
        return norm

    def update(self, grads: np.ndarray[Any, Any], rate: float, norm: float) -> None:
        """One update by gradients whose whole vector has this norm."""
        limit = self.config.max_grad_norm
        scale = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        self.count += 1
        _core.adamw_step(
            self.params,
            grads,
            self.m,
            self.v,
            lr=rate,
            beta1=self.config.adam_beta1,
            beta2=self.config.adam_beta2,
            eps=self.config.adam_epsilon,
            weight_decay=self.config.weight_decay,
            step=self.count,
            scale=scale,
        )

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """What a checkpoint holds."""
        return {"params": self.params, "m": self.m, "v": self.v}

    def load(self, tensors: dict[str, np.ndarray[Any, Any]], count: int) -> None:
        """Back to a checkpoint's state."""
        for name, value in self.state().items():
            value[:] = tensors[name]
        self.count = count
