"""llama.cpp's adapter file: general.type "adapter", adapter.type "lora", and A and B of each adapted tensor.

llama.cpp multiplies a tensor's product by adapter.lora.alpha / rank, the rank being the tensor's own; whatever else the
scaling is (rsLoRA, alpha_pattern) is folded into B. Outside check of names and shapes: convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jpo import _core
from jpo.errors import JpoError
from jpo.export import container
from jpo.export.changes import Adapter, Change
from jpo.export.container import Piece, TensorPlan
from jpo.export.layout import architecture, gguf_names, gguf_parts, row_order
from jpo.export.presets import AdapterType, file_type
from jpo.formats.gguf import GGUFFile
from jpo.formats.stored import BLOCKS

_DTYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}


def _plan(name: str, values: np.ndarray, dtype: str) -> TensorPlan:
    """q8_0 takes f16's form where rows are no whole blocks, as llama.cpp's converter has it."""
    chosen = "F16" if values.shape[1] % BLOCKS[dtype][0] else dtype

    def pieces() -> Iterator[Piece]:
        raw = _core.quantize_rows(np.ascontiguousarray(values, np.float32), chosen)
        if _core.first_nonfinite(raw, chosen) >= 0:  # type: ignore[arg-type]
            raise JpoError(f"tensor {name}: a value is not finite in {chosen}; choose --type f32")
        yield raw

    return TensorPlan(name, chosen, values.shape, pieces)


def _folded(config: Mapping[str, Any], name: str, change: Change, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """(A (r, inputs), B (outputs, r)) in the file's order of rows, so that alpha / r B A is the update."""
    factor = change.scaling * change.a.shape[0] / alpha
    b = change.b if factor == 1 else change.b * np.float32(factor)
    order = row_order(config, name)
    return change.a, b if order is None else b[order]


def _stacked(parts: list[tuple[np.ndarray, np.ndarray, int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """One (A, B) of several modules' in one tensor of `rows` rows: [(A, B, first row)]; the rank is the sum of theirs.

    llama.cpp divides alpha by the sum, so B is multiplied by sum / own rank.
    """
    rank, column = sum(a.shape[0] for a, _, _ in parts), 0
    whole = np.zeros((rows, rank), np.float32)
    for a, b, first in parts:
        r = a.shape[0]
        whole[first : first + len(b), column : column + r] = b * np.float32(rank / r)
        column += r
    return np.concatenate([a for a, _, _ in parts]), whole


def _pairs(
    adapter: Adapter, config: Mapping[str, Any], file: GGUFFile | None, alpha: float
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(GGUF name, A, B) of each adapted tensor of the base, in the base's order."""
    parts, own = gguf_parts(config), gguf_names(config)
    names = [own[name] for name in adapter.changes] if file is None else list(file.tensors)
    for name in names:
        found = [
            (*_folded(config, part, adapter.changes[part], alpha), first)
            for part, first in parts(name)
            if part in adapter.changes
        ]
        if not found:
            continue
        if len(parts(name)) == 1:
            yield name, found[0][0], found[0][1]
        else:
            assert file is not None
            yield name, *_stacked(found, file.tensors[name].shape[0])


def adapter_tensors(
    adapter: Adapter, config: Mapping[str, Any], file: GGUFFile | None, kind: AdapterType
) -> tuple[dict[str, container.Entry], list[TensorPlan]]:
    """(metadata, tensors) of the adapter's file, for a base of this configuration; file: the base, where it is GGUF."""
    alpha = float(adapter.config.lora_alpha)
    tensors = []
    for name, a, b in _pairs(adapter, config, file, alpha):
        tensors += [_plan(f"{name}.lora_a", a, _DTYPES[kind]), _plan(f"{name}.lora_b", b, _DTYPES[kind])]
    name = str(file.metadata["general.architecture"]) if file is not None else architecture(config)
    metadata: dict[str, container.Entry] = {
        "general.architecture": container.text(name),
        "general.type": container.text("adapter"),
        "general.file_type": container.u32(file_type(kind)),
        "adapter.type": container.text("lora"),
        "adapter.lora.alpha": container.f32(alpha),
        "general.quantization_version": container.u32(2),
    }
    return metadata, tensors
