"""Writing a whole model as a Hugging Face directory, for full fine-tuning and merged adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jpo.disk import write_atomic, write_json
from jpo.errors import JpoError
from jpo.formats.tensors import tensor_shapes

if TYPE_CHECKING:
    from jpo.tokenization import Tokenizer

# keys of the source's configuration that describe how its weights were stored, not what the model computes
_STORAGE_KEYS = ("quantization_config", "torch_dtype", "dtype", "_name_or_path", "transformers_version")


def hugging_face_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a normalized configuration whose tensors are stored as float32."""
    if config["hf"].get("jpo_rope_factors") is not None:
        raise JpoError(
            "this model's RoPE factors (GGUF tensor rope_freqs.weight) have no spelling in config.json; "
            "save an adapter instead of the whole model"
        )
    result = {key: value for key, value in config["hf"].items() if key not in _STORAGE_KEYS}
    return {**result, "torch_dtype": "float32"}  # the older spelling: every version reads it


def check_complete(config: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """JpoError naming the first tensor that is missing, surplus, or not float32 of the shape that `config` gives."""
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if name not in tensors:
            raise JpoError(f"tensor {name} is missing")
        value = tensors[name]
        if value.shape != shape or value.dtype != np.float32:
            raise JpoError(f"tensor {name}: expected float32 {shape}, got {value.dtype} {value.shape}")
    for name in tensors:
        if name not in shapes:
            raise JpoError(f"tensor {name} is no tensor of this model")


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    generation: dict[str, Any] | None = None,
) -> None:
    """Writes config.json, model.safetensors, the tokenizer's files and generation_config.json into `folder`.

    `config` is a normalized configuration, `tensors` all its tensors as float32 by Hugging Face name. Each file appears
    whole or not at all, config.json last, so an interrupted write is no loadable directory.
    """
    from safetensors.numpy import save_file

    plain = hugging_face_config(config)
    check_complete(config, tensors)
    folder = os.fspath(folder)
    os.makedirs(folder, exist_ok=True)
    if os.path.exists(os.path.join(folder, "config.json")):  # of an earlier model: not to stand beside new tensors
        os.unlink(os.path.join(folder, "config.json"))
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in tensor_shapes(config)}
    write_atomic(
        os.path.join(folder, "model.safetensors"),
        lambda temporary: save_file(ordered, temporary, metadata={"format": "pt"}),
    )
    tokenizer.save(folder)
    extra = {key: value for key, value in (generation or {}).items() if key != "transformers_version"}
    if config["eos_token_ids"]:
        extra.setdefault("eos_token_id", list(config["eos_token_ids"]))
    if extra:
        write_json(os.path.join(folder, "generation_config.json"), extra)
    write_json(os.path.join(folder, "config.json"), plain)
