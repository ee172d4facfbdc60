"""Arrays of other libraries read where they lie: NumPy, whatever has __dlpack__ or the buffer protocol (torch).

Knows how an array is shared; never what its numbers mean.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from jpo.errors import MissingExtra

Array = np.ndarray[Any, Any]


def as_array(name: str, value: Any, lists: bool = False) -> Array:
    """The argument called `name` as a NumPy array, without a copy (with `lists`: numbers and lists too).

    bfloat16 comes as ml_dtypes.bfloat16. TypeError names the argument and the remedy; also for a torch tensor that
    requires grad: nothing here takes part in autograd, so that detaching it silently would lose its gradient silently.
    """
    if isinstance(value, np.ndarray):
        return value
    if getattr(value, "requires_grad", False) is True:
        raise TypeError(
            f"{name}: requires grad, but jpo computes outside autograd and would lose the gradient without a word; pass "
            f"{name}.detach(), and hand a gradient from jpo to autograd by {name}.backward(gradient)"
        )
    if hasattr(value, "__dlpack__"):
        try:
            return _bfloat16_of_torch(value) if _is_torch_bfloat16(value) else np.from_dlpack(value)
        except (BufferError, TypeError, RuntimeError, ValueError) as error:
            raise TypeError(
                f"{name}: cannot be read through __dlpack__ ({error}); pass a NumPy array on the CPU"
            ) from None
    if lists and isinstance(value, (int, float, list, tuple)):
        return np.asarray(value)
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}; pass np.asarray({name})") from None


def _is_torch_bfloat16(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def _bfloat16_of_torch(value: Any) -> Array:
    """DLPack knows bfloat16, NumPy's reader of it does not: the bits go through as integers."""
    try:
        import ml_dtypes
    except ImportError:
        raise MissingExtra("bfloat16 arrays need ml_dtypes: pip install 'jpo[bfloat16]'") from None
    return np.from_dlpack(value.view(sys.modules["torch"].int16)).view(ml_dtypes.bfloat16)
