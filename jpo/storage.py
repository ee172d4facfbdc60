"""How a model's weights are held in memory and multiplied: as stored, or converted once at load. Knows bytes; never
models."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from jpo.errors import JpoError
from jpo.formats import StoredTensor

# types of products with the model's weights, in the engine's order (csrc/base/dtype.h; tests/typing holds this copy to
# it)
ProductType = Literal["float32", "int16", "bfloat16", "bfloat16x2", "bfloat16x3"]
Compute = Literal[ProductType, "auto"]
COMPUTES: tuple[ProductType, ...] = get_args(ProductType)
Storage = Literal["auto", "as-stored", "float32", "bfloat16", "q8_0"]
STORAGES: tuple[Storage, ...] = get_args(Storage)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bytes, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2").view(np.uint8).ravel()


def _q8_0(values: np.ndarray) -> np.ndarray:
    """float32 -> Q8_0 blocks: d = max|x| / 127 in float16, q = round(x / d)."""
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    out = np.empty((len(blocks), 34), dtype=np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = np.rint(blocks * inverse).astype(np.int8).view(np.uint8)
    return out.ravel()


def stored_bytes(tensor: StoredTensor, storage: Storage, must: bool = True) -> int:
    """Bytes of a tensor under `storage`, as stored_as makes them; must=False: where it cannot be, as it is stored."""
    count = 1
    for extent in tensor.shape:
        count *= extent
    if len(tensor.shape) < 2 or storage == "float32":
        return 4 * count
    if storage == "bfloat16":
        return 2 * count
    if storage == "q8_0" and (must or tensor.shape[-1] % 32 == 0):
        return count // 32 * 34
    return tensor.data.nbytes


def stored_as(tensor: StoredTensor, storage: str) -> tuple[str, np.ndarray]:
    """(dtype, bytes (uint8)) of a tensor under `storage`; vectors (norms, biases) are always float32."""
    if storage not in STORAGES:
        raise JpoError(f"storage: expected one of {', '.join(STORAGES)}, got {storage!r}")
    if len(tensor.shape) < 2 or storage == "float32":
        if tensor.dtype == "F32":
            return "F32", tensor.data
        return "F32", tensor.float32().view(np.uint8).ravel()
    if storage == "bfloat16" and tensor.dtype != "BF16":
        return "BF16", _bfloat16(tensor.float32())
    if storage == "q8_0" and tensor.dtype != "Q8_0":
        if tensor.shape[-1] % 32:
            raise JpoError(
                f"storage q8_0: tensor {tensor.name} has rows of {tensor.shape[-1]} values, no multiple of 32"
            )
        return "Q8_0", _q8_0(tensor.float32())
    return tensor.dtype, tensor.data
