"""What is trained, as the engine and the optimizer see it: one vector, and names for its parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np


class Trainable:
    """Everything that is trained, as one flat float32 vector (P,), and its gradient beside it; tensors are views.

    Those named in `transposed` have shape (inputs, outputs) and stand in the vector as (outputs, inputs)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str] = ()):
        self.names = list(shapes)
        self.shapes = dict(shapes)
        self.transposed = frozenset(transposed)
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self.offsets: dict[str, int] = dict(zip(self.names, starts, strict=False))
        self.params = np.zeros(starts[-1], dtype=np.float32)
        self.grads = np.zeros(starts[-1], dtype=np.float32)

    def _part(self, vector: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        start, shape = self.offsets[name], self.shapes[name]
        values = vector[start : start + int(np.prod(shape))]
        return values.reshape(shape[::-1]).T if name in self.transposed else values.reshape(shape)

    def view(self, name: str) -> np.ndarray[Any, Any]:
        """The named tensor: a view into params."""
        return self._part(self.params, name)

    def grad(self, name: str) -> np.ndarray[Any, Any]:
        """The named tensor's gradient: a view into grads."""
        return self._part(self.grads, name)

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """name -> copy of the tensor."""
        return {name: self.view(name).copy() for name in self.names}

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        """name -> copy of the gradient."""
        return {name: self.grad(name).copy() for name in self.names}
