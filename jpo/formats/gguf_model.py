"""The model inside a GGUF file, in Hugging Face's names, shapes and order of rows.

The architecture's metadata is spelled as a config.json of its family (jpo.formats.families), so that one reader checks
both. Knows llama.cpp's keys and tensor names; the container is jpo.formats.gguf's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jpo import _core
from jpo.errors import FormatError
from jpo.formats.config import normalize
from jpo.formats.families import Family, families
from jpo.formats.families.family import Meta
from jpo.formats.files import check_tensors
from jpo.formats.gguf import GGUFFile, read_gguf
from jpo.formats.gguf_tokenizer import tokenizer_from_metadata
from jpo.formats.stored import Checkpoint, StoredTensor
from jpo.formats.values import integer, number

# keys (without the architecture's prefix) that every family's reader uses or that change nothing; of the others, those
# are refused that are not zero, false or empty and that the family does not name in gguf_keys
_KNOWN_KEYS = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon", "attention.sliding_window", "rope.dimension_count", "rope.freq_base",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.original_context_length",
    "rope.scaling.finetuned", "rope.scale_linear", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "tensor_data_layout", "rope.scaling.yarn_ext_factor",
}  # fmt: skip
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def _uniform(file: GGUFFile, key: str) -> Any:
    """A metadata value that may also stand once per layer, then equal in all."""
    value = file.metadata.get(key)
    if isinstance(value, list):
        raise FormatError(f"{file.path}: metadata key {key}: expected a number, got an array of strings")
    if isinstance(value, np.ndarray):
        if not value.size or (value != value[0]).any():
            raise FormatError(f"{file.path}: metadata key {key}: layers that differ are not implemented")
        return value[0].item()
    return value


def _prefix(file: GGUFFile) -> str:
    """What the architecture's own keys begin with."""
    return f"{file.metadata['general.architecture']}."


def _refuse_unknown(file: GGUFFile, family: Family) -> None:
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise FormatError(
            f"{file.path}: split.count = {file.metadata['split.count']}: join the parts (llama-gguf-split --merge)"
        )
    prefix = _prefix(file)
    for key, value in file.metadata.items():
        short = key.removeprefix(prefix)
        if not key.startswith(prefix) or short in _KNOWN_KEYS or short in family.gguf_keys:
            continue
        if short == "attention.causal" and value is True:
            continue
        empty = not np.any(value) if isinstance(value, (np.ndarray, int, float)) else not value
        if not empty:
            raise FormatError(
                f"{file.path}: metadata key {key} = {value!r} changes the mathematics and is not implemented"
            )


def _rope_scaling(file: GGUFFile, flat: Mapping[str, Any]) -> dict[str, Any] | None:
    """RoPE's scaling in Hugging Face's spelling, from the architecture's entries."""
    where, prefix = file.path, _prefix(file)
    factor = number(where, flat, "rope.scaling.factor", number(where, flat, "rope.scale_linear", 1.0))
    kind = flat.get("rope.scaling.type")
    if kind is None:
        kind = "none" if factor == 1.0 else "linear"
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind not in ("linear", "yarn"):
        raise FormatError(f"{where}: metadata key {prefix}rope.scaling.type = {kind!r} is not implemented")
    scaling: dict[str, Any] = {"rope_type": kind, "type": kind, "factor": factor}
    if kind == "linear":
        return scaling
    original = integer(where, flat, "rope.scaling.original_context_length", 0, least=0)
    if original:
        scaling["original_max_position_embeddings"] = original
    for name in ("beta_fast", "beta_slow"):
        if flat.get(f"rope.scaling.yarn_{name}", -1.0) != -1.0:  # -1: unset, as llama.cpp writes it
            scaling[name] = number(where, flat, f"rope.scaling.yarn_{name}", 1.0)
    if flat.get("rope.scaling.yarn_ext_factor", -1.0) not in (-1.0, 1.0):
        raise FormatError(f"{where}: metadata key {prefix}rope.scaling.yarn_ext_factor is not implemented")
    extra = number(where, flat, "rope.scaling.attn_factor", number(where, flat, "rope.scaling.yarn_attn_factor", 1.0))
    if extra != 1.0:  # llama.cpp multiplies it onto YaRN's own
        scaling["attention_factor"] = extra * (0.1 * float(np.log(max(factor, 1.0))) + 1.0)
    return scaling


def _llama3_scaling(theta: float, dim: int, factors: np.ndarray) -> dict[str, Any] | None:
    """The llama3 scaling whose factors stand in rope_freqs.weight, or None where no usual one gives them.

    llama.cpp stores only the divisors; configurations written for Hugging Face need the parameters back.
    """
    base = theta ** -(np.arange(0, dim, 2) / dim)
    original, low, high = 8192.0, 1.0, 4.0
    factor = float(factors.max())
    if factor <= 1:
        return None
    wavelength = 2 * np.pi / base
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-5):
        return None
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": int(original),
    }  # fmt: skip


def _token_id(file: GGUFFile, name: str) -> Any:
    """tokenizer.ggml.{name}_token_id, old converters' 2^32-1 being none."""
    value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return None if isinstance(value, int) and value == 0xFFFFFFFF else value


def _architecture(file: GGUFFile) -> Family:
    kind = file.metadata.get("general.type")
    if kind in ("adapter", "mmproj", "imatrix", "vocab"):
        raise FormatError(
            f"{file.path}: general.type is {kind!r}: no model; load the base model, and for an adapter the directory in "
            "PEFT's format that it was exported from"
        )
    name = file.metadata.get("general.architecture")
    known = {family.gguf: family for family in families().values() if family.gguf}
    if not isinstance(name, str) or name not in known:
        raise FormatError(
            f"{file.path}: general.architecture {name!r} is not implemented; expected one of {', '.join(known)}"
        )
    if name == "llama" and file.metadata.get("llama.attention.sliding_window"):
        return families()["mistral"]
    return known[name]


def _sizes(file: GGUFFile, meta: Meta, family: Family) -> dict[str, Any]:
    """What every family's config.json says, under the usual keys."""
    where, flat = file.path, meta.config
    heads, hidden = meta.integer("attention.head_count"), meta.integer("embedding_length")
    head_dim = meta.integer("attention.key_length", hidden // heads or None)
    if meta.integer("attention.value_length", head_dim) != head_dim:
        raise FormatError(
            f"{where}: metadata key {_prefix(file)}attention.value_length: only the head size {head_dim} is implemented"
        )
    rotated = meta.integer("rope.dimension_count", head_dim)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(f"{where}: tensor token_embd.weight is missing")
    eps = number(
        where, flat, "attention.layer_norm_rms_epsilon", number(where, flat, "attention.layer_norm_epsilon", 1e-5)
    )
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": meta.integer("feed_forward_length"),
        "num_hidden_layers": meta.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": family.activations[0],
        "rms_norm_eps": eps,
        "max_position_embeddings": meta.integer("context_length"),
        "rope_theta": number(where, flat, "rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file, flat),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": _token_id(file, "bos"),
        "eos_token_id": _token_id(file, "eos"),
    }
    if rotated != head_dim:
        if "partial_rotary_factor" not in family.reads:
            raise FormatError(
                f"{where}: metadata key {_prefix(file)}rope.dimension_count: only the head size {head_dim} is "
                f"implemented, got {rotated}"
            )
        config["partial_rotary_factor"] = rotated / head_dim
    window = meta.integer("attention.sliding_window", 0, least=0)
    if window:
        config["sliding_window"] = window
    return config


def _hugging_face_config(file: GGUFFile, family: Family) -> tuple[dict[str, Any], np.ndarray | None]:
    """(the configuration in Hugging Face's spelling, factors of rope_freqs.weight that it cannot spell or None)"""
    _refuse_unknown(file, family)
    prefix = _prefix(file)
    flat = {key.removeprefix(prefix): _uniform(file, key) for key in file.metadata if key.startswith(prefix)}
    meta = Meta(file.path, flat, file.tensors)
    config = _sizes(file, meta, family)
    config.update({to: flat[key] for key, to in family.gguf_keys.items() if to and flat.get(key) is not None})
    config.update(family.gguf_config(meta, config))
    config = {family.keys.get(key, key): value for key, value in config.items()}
    listed = meta.factors("rope_freqs.weight")
    if listed is None:
        return config, None
    factors = np.asarray(listed)
    dim = int(config["head_dim"] * config.get("partial_rotary_factor", 1.0))
    if config["rope_scaling"] is None and len(factors) == dim // 2:
        config["rope_scaling"] = _llama3_scaling(config["rope_theta"], dim, factors)
        if config["rope_scaling"]:
            return config, None
    if np.all(factors == 1.0) and len(factors) == dim // 2:
        return config, None
    config["jpo_rope_factors"] = factors.tolist()  # a configuration that transformers cannot read: writing is refused
    return config, factors


def _halves_apart(tensor: StoredTensor, name: str, heads: int) -> StoredTensor:
    """Rows of a q or k matrix (or bias) from interleaved rotary pairs to Hugging Face's two halves a head.

    The file's row (head, pair i, half j) is Hugging Face's (head, j, i). Whole rows move, so blocks stay whole.
    """
    tensor = tensor.by_rows()
    rows, width = tensor.shape[0], tensor.data.size // tensor.shape[0]
    pairs = tensor.data.reshape(heads, rows // heads // 2, 2, width)
    data = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)
    return StoredTensor(name, tensor.dtype, tensor.shape, data)


def _without_one(tensor: StoredTensor) -> StoredTensor:
    """A norm's weight as Hugging Face stores it: less the 1 that the file has added."""
    data = (tensor.float32() - np.float32(1)).view(np.uint8).reshape(-1)
    return StoredTensor(tensor.name, "F32", tensor.shape, data)


def _names(family: Family) -> tuple[dict[str, str], dict[str, str]]:
    """(GGUF's name -> the file's for what stands once, the same within a layer), without .weight and .bias."""
    inside = {part: fused for fused, parts in family.fused.items() for part in parts}
    once: dict[str, str] = {}
    layer: dict[str, str] = {}
    for engine, gguf, _, per_layer, *_ in _core.TENSORS:
        file = inside.get(engine) or family.names.get(engine, engine)
        name = family.gguf_names.get(file) or family.gguf_names.get(engine, gguf)
        (layer if per_layer else once).setdefault(name, file)
    return once, layer


def _renamed(file: GGUFFile, family: Family) -> Iterator[StoredTensor]:
    """The file's tensors under the family's names; a fused attn_qkv of a family that stores q, k and v is kept
    whole."""
    once, layer = _names(family)
    for name, tensor in file.tensors.items():
        parts = name.split(".")
        if name in FACTORS or (len(parts) == 4 and parts[2] == "attn_rot_embd"):
            continue  # part of the configuration, or frequencies that old converters stored and that are derived here
        if len(parts) == 2 and parts[0] in once:
            new = f"{once[parts[0]]}.{parts[1]}"
        elif len(parts) == 4 and parts[0] == "blk" and parts[1].isascii() and parts[1].isdigit():
            if parts[2] not in layer and parts[2] != "attn_qkv":
                raise _unknown(file, name)
            new = f"{family.layers}.{int(parts[1])}.{layer.get(parts[2], 'attn_qkv')}.{parts[3]}"
        else:
            raise _unknown(file, name)
        yield StoredTensor(new, tensor.dtype, tensor.shape, tensor.data)


def _unknown(file: GGUFFile, name: str) -> FormatError:
    return FormatError(
        f"{file.path}: tensor {name}: no such tensor in the {_prefix(file)[:-1]} architecture as implemented"
    )


def _split_qkv(where: str, config: Mapping[str, Any], tensor: StoredTensor) -> Iterator[StoredTensor]:
    """q, k and v of a fused tensor, its rows one above the other."""
    heads = config["num_attention_heads"], config["num_key_value_heads"], config["num_key_value_heads"]
    rows, start = [count * config["head_dim"] for count in heads], 0
    if tensor.shape[0] != sum(rows):
        raise FormatError(
            f"{where}: tensor {tensor.name}: expected {sum(rows)} rows of q, k and v, got {tensor.shape[0]}"
        )
    for count, part in zip(rows, _QKV, strict=True):
        yield tensor.rows(tensor.name.replace("attn_qkv", part), start, count)
        start += count


def _in_our_order(config: Mapping[str, Any], family: Family, tensor: StoredTensor) -> StoredTensor:
    """A tensor with rows and values as Hugging Face has them."""
    module = tensor.name.rpartition(".")[0]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if family.gguf_rows == "pairs" and module.rpartition(".")[2] in heads:
        return _halves_apart(tensor, tensor.name, heads[module.rpartition(".")[2]])
    if family.gguf_adds_one and len(tensor.shape) == 1 and module.endswith("norm"):
        return _without_one(tensor)
    return tensor


def _in_our_shape(family: Family, tensor: StoredTensor) -> StoredTensor:
    """A module that Hugging Face stores as (inputs, outputs): of that shape, its bytes left as they are."""
    module = tensor.name.rpartition(".")[0]
    if len(tensor.shape) != 2 or not any(module.endswith(f".{name}") for name in family.transposed):
        return tensor
    return StoredTensor(tensor.name, tensor.dtype, tensor.shape[::-1], tensor.data, rows_are_outputs=True)


def described(file: GGUFFile) -> tuple[dict[str, Any], np.ndarray | None]:
    """What the file's metadata say in Hugging Face's spelling: (config.json, rotary factors that it cannot spell or
    None)."""
    return _hugging_face_config(file, _architecture(file))


def load_gguf(path: str | os.PathLike[str], source: str | None = None) -> Checkpoint:
    """A GGUF file as a Checkpoint with Hugging Face's names and row order; FormatError names file and key or tensor."""
    file = read_gguf(path)
    family = _architecture(file)
    hf, factors = _hugging_face_config(file, family)
    config = normalize(file.path, hf, rope_factors=factors)
    renamed: dict[str, StoredTensor] = {}
    for tensor in _renamed(file, family):
        fused = ".attn_qkv." in tensor.name
        for part in _split_qkv(file.path, config, tensor) if fused else (tensor,):
            renamed[part.name] = _in_our_shape(family, part)
    check_tensors(file.path, config, renamed)
    tensors = {name: _in_our_order(config, family, tensor) for name, tensor in renamed.items()}
    tokenizer = tokenizer_from_metadata(file.path, file.metadata, config["vocab_size"])
    config["eos_token_ids"] = list(dict.fromkeys(config["eos_token_ids"] + tokenizer.eos_token_ids))
    tokenizer.eos_token_ids = list(config["eos_token_ids"])
    return Checkpoint(config, tensors, tokenizer, source or file.path, {"eos_token_id": list(config["eos_token_ids"])})
