"""Adapters that are more than low-rank updates (DoRA's magnitudes, biases, modules trained whole): merged in memory.

The model's own code merges (LanguageModel.state); what it changed stands as float32 or, where no other type is asked
for, in the base's 16-bit type, the rest as it is stored. Takes the memory of the whole model; plain LoRA is merged
tensor by tensor (jpo.export.rows)."""

from __future__ import annotations

import os

import numpy as np

from jpo import _core
from jpo.export.base import Base
from jpo.export.changes import Adapter
from jpo.formats.peft import PREFIX, AdapterConfig, read_adapter
from jpo.formats.stored import Checkpoint, StoredTensor
from jpo.lora import lora_layout


def beyond_low_rank(folder: str | os.PathLike[str]) -> AdapterConfig | None:
    """The configuration of an adapter whose merging needs more than W + scaling B A; None for a plain one."""
    config, tensors = read_adapter(folder)
    low_rank = all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
    plain = low_rank and not any(name.startswith(f"{PREFIX}lm_head.") for name in tensors)
    return None if plain else config


def _stored(name: str, values: np.ndarray, like: StoredTensor | None) -> StoredTensor:
    dtype = like.dtype if like is not None and like.dtype in ("F16", "BF16") and values.ndim > 1 else "F32"
    rows = np.ascontiguousarray(values, np.float32)
    data = (
        rows.view(np.uint8).reshape(-1) if dtype == "F32" else np.frombuffer(_core.quantize_rows(rows, dtype), np.uint8)
    )
    return StoredTensor(name, dtype, values.shape, data.reshape(-1))


def merged_base(
    base: Base, folder: str | os.PathLike[str], config: AdapterConfig, *, rounded: bool
) -> tuple[Base, Adapter]:
    """The base with the adapter merged in, and the adapter with nothing left to change.

    rounded: what changed stands in the base's 16-bit type where it has one; otherwise in float32, for another type to
    be made of it.
    """
    from jpo.model import LanguageModel

    lm = LanguageModel(base.checkpoint)
    lm.load_adapter(folder)
    assert lm.lora is not None
    layout = lora_layout(lm.config, lm.lora)
    changed = {f"{name}.weight" for name in layout.adapted} | set(layout.whole.values())
    own = base.checkpoint.tensors
    tensors = {
        name: _stored(name, values, own.get(name) if rounded else None)
        if name in changed or name not in own
        else own[name]
        for name, values in lm.state().items()
    }
    source = base.checkpoint
    merged = Checkpoint(lm.merged_config(), tensors, source.tokenizer, source.source, source.generation)
    return Base(merged, None, base.folder), Adapter(os.fspath(folder), config, {})
