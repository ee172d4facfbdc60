"""The metadata of a GGUF file for a Hugging Face configuration: the inverse of jpo.formats.gguf_model's reading.

Whether a file says all that the model computes is not left to trust: what was written is read again, and a difference
from the model's own configuration refuses the export by the name of what GGUF cannot hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jpo.errors import FormatError, JpoError
from jpo.export import container
from jpo.export.container import Entry, TensorPlan
from jpo.export.layout import architecture
from jpo.export.rows import Rows
from jpo.formats.config import normalize
from jpo.formats.families import Family, family_of
from jpo.formats.gguf import GGUFFile
from jpo.formats.gguf_model import described
from jpo.formats.rope import rope_parameters
from jpo.formats.stored import StoredTensor
from jpo.formats.values import Values

Keys = dict[str, Any]  # without the architecture's prefix -> int, float, bool, str or list of bool
# what the engine never reads of a normalized configuration, or what stands in the tokenizer's metadata
_UNSAID = {"granite": 1.0}  # what keys of gguf_keys mean where config.json lacks them: llama.cpp wants them
_ASIDE = ("hf", "bos_token_id", "eos_token_ids", "model_type")


def _entry(value: Any) -> Entry:
    if isinstance(value, bool):
        return container.flag(value)
    if isinstance(value, int):
        return container.u32(value)
    if isinstance(value, float):
        return container.f32(value)
    return container.text(value) if isinstance(value, str) else container.flags(value)


def _values(config: Mapping[str, Any]) -> Values:
    family = family_of(config["model_type"])
    return Values("config.json", {**family.defaults, **config["hf"]}, family.keys)


def _sizes(config: Mapping[str, Any]) -> Keys:
    norm = "attention.layer_norm_epsilon" if config["norm"] == "layer" else "attention.layer_norm_rms_epsilon"
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        norm: float(config["norm_eps"]),
    }


def _rope(config: Mapping[str, Any], values: Values) -> Keys:
    """Base, rotated dimensions and scaling; llama3's and longrope's factors stand as tensors."""
    if config["learned_positions"]:
        return {}
    parameters = _parameters(config, values)
    part = parameters.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    keys: Keys = {
        "rope.freq_base": parameters["rope_theta"],
        "rope.dimension_count": int(config["head_dim"] * (1.0 if part is None else float(part))),
    }
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(parameters["factor"])}
    if kind == "yarn":
        original = parameters.get("original_max_position_embeddings") or config["max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = int(original)
        for name in ("beta_fast", "beta_slow"):
            if parameters.get(name) is not None:
                keys[f"rope.scaling.yarn_{name}"] = float(parameters[name])
        own = 0.1 * float(np.log(max(float(parameters["factor"]), 1.0))) + 1.0
        attention = config["rotary"][0]["attention_factor"]
        if abs(attention - own) > 1e-6 * own:  # llama.cpp multiplies it onto YaRN's own
            keys["rope.scaling.yarn_attn_factor"] = attention / own
    if config["model_type"] == "phi3":
        original = parameters.get("original_max_position_embeddings") or config["max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = int(original)
        if "long_inv_freq" in config["rotary"][0]:
            keys["rope.scaling.attn_factor"] = float(config["rotary"][0]["attention_factor"])
    return keys


def _parameters(config: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """RoPE's parameters, with the family's own base where the configuration says none."""
    given = rope_parameters(values, "full_attention")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind in ("default", "linear"):
        return {**given, "rope_theta": _base_of(config["rotary"][0]["inv_freq"], given["rope_theta"])}
    return given


def _base_of(frequencies: Sequence[float], near: float) -> float:
    """The base of frequencies base^(-2 i / dim) / factor: `near`, if it is that but for rounding."""
    if len(frequencies) < 2:
        return near
    base = float((frequencies[0] / frequencies[1]) ** len(frequencies))
    return near if abs(base - near) < 1e-4 * near else round(base, 3 - int(np.log10(base)))


def _window(config: Mapping[str, Any]) -> Keys:
    sizes = {size for size in config["layer_window"] if size}
    return {"attention.sliding_window": max(sizes)} if sizes else {}


def _family_keys(config: Mapping[str, Any], family: Family, values: Values) -> Keys:
    keys: Keys = {}
    for key, name in family.gguf_keys.items():
        value = values.get(name, _UNSAID.get(family.model_type)) if name else None
        if value is not None:
            keys[key] = value if isinstance(value, (bool, str)) else float(value)
    if family.model_type == "gemma3_text" and len(config["rotary"]) > 1:
        keys["rope.freq_base_swa"] = _base_of(config["rotary"][1]["inv_freq"], 10000.0)
    return keys


def _factors(config: Mapping[str, Any], values: Values) -> dict[str, list[float]]:
    """Divisors of the rotary frequencies that stand as tensors: llama3's and longrope's."""
    if config["learned_positions"]:
        return {}
    parameters = _parameters(config, values)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("longrope", "su", "yarn") and "long_factor" in parameters:
        return {f"rope_factors_{name}.weight": parameters[f"{name}_factor"] for name in ("long", "short")}
    if kind != "llama3":
        return {}
    frequencies = np.asarray(config["rotary"][0]["inv_freq"])
    plain = parameters["rope_theta"] ** -(np.arange(len(frequencies)) / len(frequencies))
    return {"rope_freqs.weight": (plain / frequencies).tolist()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return bool(np.isclose(one, other, rtol=2e-6, atol=0))  # float32 in the file
    return bool(one == other)


def _read_again(config: Mapping[str, Any], keys: Keys, tensors: Mapping[str, StoredTensor]) -> Mapping[str, Any]:
    """The configuration that our reader makes of these keys and names of tensors."""
    prefix = architecture(config)
    metadata = {
        f"{prefix}.{key}": np.float32(value).item() if isinstance(value, float) else value
        for key, value in keys.items()
    }
    file = GGUFFile("the GGUF file", 3, {"general.architecture": prefix, **metadata}, dict(tensors))
    hf, factors = described(file)
    return normalize(file.path, hf, rope_factors=factors)


def _check(config: Mapping[str, Any], keys: Keys, tensors: Mapping[str, StoredTensor]) -> None:
    """JpoError where GGUF's metadata mean another model than the configuration."""
    kind = config["model_type"]
    try:
        again = _read_again(config, keys, tensors)
    except FormatError as error:
        raise JpoError(f"this {kind} model cannot be said in a GGUF file: {error}; merge with --format hf") from None
    aside = (*_ASIDE, *(("tie_word_embeddings",) if "output.weight" in tensors else ()))  # a head written twice is tied
    for key in config:
        if key not in aside and not _same(config[key], again[key]):
            raise JpoError(
                f"this {kind} model cannot be said in a GGUF file: {key} is {config[key]!r:.200}, and would be "
                f"read as "
                f"{again[key]!r:.200}; merge with --format hf"
            )


def model_metadata(
    config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Entry], list[TensorPlan]]:
    """(the architecture's metadata, tensors of rotary factors) of a Hugging Face model; tensors: GGUF name -> shape.

    JpoError where the model's architecture has no GGUF form, or GGUF cannot say what it computes.
    """
    prefix, family, values = architecture(config), family_of(config["model_type"]), _values(config)
    keys = _sizes(config) | _rope(config, values) | _window(config) | _family_keys(config, family, values)
    shapes = {name: StoredTensor(name, "F32", shape, np.empty(0, np.uint8)) for name, shape in tensors.items()}
    plans = []
    for name, factors in _factors(config, values).items():
        rows = Rows(StoredTensor(name, "F32", (len(factors),), np.asarray(factors, np.float32).view(np.uint8)))
        shapes[name] = rows.tensor
        plans.append(TensorPlan(name, "F32", rows.shape, partial(rows.pieces, "config.json", name, "F32")))
    _check(config, keys, shapes)
    return {f"{prefix}.{key}": _entry(value) for key, value in keys.items()}, plans
