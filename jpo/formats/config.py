"""From a Hugging Face configuration to the normalized one that the model core reads.

Knows which keys change the mathematics and refuses, by name, those that are not implemented. GGUF metadata is
first spelled as such a configuration (jpo.formats.gguf), so that one list of rules serves both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jpo.errors import FormatError
from jpo.formats.rope import inverse_frequencies

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_LIMIT = 1 << 31  # sizes are C ints further down

# key -> the values under which it changes nothing; any other value is refused. attention_dropout is absent on
# purpose: it acts in training only, and preference training of a released model runs without it, as TRL's does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logits_scale": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "embedding_scale": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "scale_emb": (None, 1, 1.0),
    "scale_depth": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "attention_scale": (None,),
    "query_pre_attn_scalar": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_softcap": (None,),
    "clip_qkv": (None,),
    "qk_norm": (None, False),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "parallel_residual": (None, False),
    "use_parallel_residual": (None, False),
    "parallel_attn": (None, False),
    "alibi": (None, False),
    "no_rope_layers": (None, []),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "position_embedding_type": (None, "rope", "rotary"),
    "norm_type": (None, "rmsnorm"),
    "use_bidirectional_attention": (None, False),
    "num_nextn_predict_layers": (None, 0),
}


def integer(where: str, config: dict[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """config[key] as an int of at least `least` and below 2^31; FormatError names the key."""
    value = config.get(key, default)
    if value is None and default is not None:
        value = default
    if value is None:
        raise FormatError(f"{where}: key {key} is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LIMIT:
        raise FormatError(f"{where}: key {key}: expected an integer from {least} to 2^31, got {value!r}")
    return value


def number(where: str, config: dict[str, Any], key: str, default: float) -> float:
    """config[key] as a finite float above 0; FormatError names the key."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FormatError(f"{where}: key {key}: expected a number, got {value!r}")
    try:
        value = float(value)
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise FormatError(f"{where}: key {key}: expected a finite number above 0, got {value!r}")
    return value


def boolean(where: str, config: dict[str, Any], key: str) -> bool:
    """config[key] as a bool, absent or null being False; FormatError names the key."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{where}: key {key}: expected true or false, got {value!r}")
    return bool(value)


def token_ids(where: str, value: Any, vocab_size: int | None = None) -> list[int]:
    """A token id, a list of them or None as a list; FormatError where an entry is no id of the vocabulary."""
    entries = [] if value is None else value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
            raise FormatError(f"{where}: expected token ids (integers from 0), got {entry!r}")
        if vocab_size is not None and entry >= vocab_size:
            raise FormatError(f"{where}: token id {entry} lies outside the vocabulary of {vocab_size}")
    return list(dict.fromkeys(entries))


def _architecture(where: str, hf: dict[str, Any]) -> str:
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise FormatError(
            f"{where}: model_type {kind!r} is not implemented; implemented are {', '.join(ARCHITECTURES)}"
        )
    named = hf.get("architectures")
    named = [ARCHITECTURES[kind]] if named is None else named
    if (
        not isinstance(named, list)
        or not named
        or named[0] not in (ARCHITECTURES[kind], ARCHITECTURES[kind][:-11] + "Model")
    ):
        raise FormatError(f"{where}: architectures {named!r} is not implemented; expected [{ARCHITECTURES[kind]!r}]")
    return kind


def _refuse_unimplemented(where: str, hf: dict[str, Any], kind: str) -> None:
    for key, neutral in _NEUTRAL.items():
        value = hf.get(key)
        if not any(value is entry or (type(value) is type(entry) and value == entry) for entry in neutral):
            raise FormatError(f"{where}: key {key} = {value!r} changes the mathematics and is not implemented")
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise FormatError(f"{where}: key hidden_act: only 'silu' is implemented, got {hf['hidden_act']!r}")
    layers = hf.get("layer_types")
    plain = "sliding_attention" if kind == "mistral" and hf.get("sliding_window") else "full_attention"
    if layers is not None and (not isinstance(layers, list) or any(entry != plain for entry in layers)):
        raise FormatError(f"{where}: key layer_types: layers that differ are not implemented; expected all {plain!r}")
    if (
        kind == "mistral"
    ):  # its blocks have no biases whatever these keys say: a file that sets them means another model
        for key in ("attention_bias", "mlp_bias"):
            if hf.get(key):
                raise FormatError(f"{where}: key {key} = {hf[key]!r} is not implemented for model_type 'mistral'")


def _rope(where: str, hf: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """(theta, scaling parameters) from either spelling: rope_theta + rope_scaling, or rope_parameters."""
    parameters: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # the older spelling wins where both stand, as in transformers
        value = hf.get(key)
        if value is not None and not isinstance(value, dict):
            raise FormatError(f"{where}: key {key}: expected an object, got {value!r}")
        parameters = value or parameters
    if any(isinstance(value, dict) for value in parameters.values()):
        raise FormatError(f"{where}: key rope_parameters: parameters per layer type are not implemented")
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        got = parameters["partial_rotary_factor"]
        raise FormatError(
            f"{where}: key partial_rotary_factor = {got!r} changes the mathematics and is not implemented"
        )
    if hf.get("original_max_position_embeddings") is not None:
        parameters = {**parameters, "original_max_position_embeddings": hf["original_max_position_embeddings"]}
    theta = parameters.get("rope_theta") or hf.get("rope_theta")
    return number(where, {"rope_theta": theta}, "rope_theta", 10000.0), parameters


def _heads(where: str, hf: dict[str, Any], kind: str, hidden: int) -> tuple[int, int, int]:
    """(query heads, key/value heads, values a head)."""
    heads = integer(where, hf, "num_attention_heads")
    absent = 8 if kind == "mistral" and "num_key_value_heads" not in hf else heads
    kv_heads = integer(where, hf, "num_key_value_heads", absent)
    if heads % kv_heads:
        raise FormatError(f"{where}: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})")
    if hf.get("head_dim") is None and hidden % heads:
        raise FormatError(f"{where}: hidden_size ({hidden}) is no multiple of num_attention_heads ({heads})")
    head_dim = integer(where, hf, "head_dim", hidden // heads or None)
    if head_dim % 2 or head_dim > 8192:
        raise FormatError(f"{where}: key head_dim: expected an even number up to 8192 (rotary pairs), got {head_dim}")
    return heads, kv_heads, head_dim


def normalize(
    where: str,
    hf: dict[str, Any],
    *,
    generation: dict[str, Any] | None = None,
    rope_factors: np.ndarray | None = None,
) -> dict[str, Any]:
    """The normalized configuration of a Hugging Face one (`hf`, kept under the key of that name).

    `rope_factors` (head_dim/2,) divide the frequencies and come from GGUF files. FormatError names `where` and the key.
    """
    kind = _architecture(where, hf)
    _refuse_unimplemented(where, hf, kind)
    hidden = integer(where, hf, "hidden_size")
    vocab = integer(where, hf, "vocab_size")
    heads, kv_heads, head_dim = _heads(where, hf, kind, hidden)
    positions = integer(where, hf, "max_position_embeddings", 2048 if kind == "llama" else 131072)
    theta, parameters = _rope(where, hf)
    if rope_factors is not None and rope_factors.shape != (head_dim // 2,):
        raise FormatError(f"{where}: rope_freqs.weight: expected {head_dim // 2} factors, got {rope_factors.size}")
    inv_freq, attention = inverse_frequencies(where, head_dim, theta, parameters, positions, rope_factors)
    # Llama's blocks ignore sliding_window; Mistral's default is 4096 where the key is absent, none where it is null
    window = hf.get("sliding_window", 4096) if kind == "mistral" else None
    eos = token_ids(f"{where}: key eos_token_id", (generation or {}).get("eos_token_id"), vocab)
    bos = token_ids(f"{where}: key bos_token_id", hf.get("bos_token_id"))
    return {
        "model_type": kind,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": integer(where, hf, "intermediate_size"),
        "num_hidden_layers": integer(where, hf, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": number(where, hf, "rms_norm_eps", 1e-6),
        "hidden_act": "silu",
        "inv_freq": inv_freq,
        "rope_attention_factor": attention,
        "sliding_window": 0 if window is None else integer(where, {"sliding_window": window}, "sliding_window"),
        "tie_word_embeddings": boolean(where, hf, "tie_word_embeddings"),
        "max_position_embeddings": positions,
        "attention_bias": boolean(where, hf, "attention_bias"),
        "mlp_bias": boolean(where, hf, "mlp_bias"),
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": list(dict.fromkeys(eos + token_ids(f"{where}: key eos_token_id", hf.get("eos_token_id")))),
        "hf": hf,
    }


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape of every tensor that a model of this normalized configuration has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    matrices = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in matrices.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if config["attention_bias"] if name.startswith("self_attn") else config["mlp_bias"]:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes
