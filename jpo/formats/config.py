"""From a Hugging Face configuration to the normalized one that the model core reads.

Knows which keys change the mathematics and refuses, by name, those that no row of the engine's tables covers; what a
family adds stands in jpo/formats/families. GGUF metadata is first spelled as such a configuration
(jpo.formats.gguf_model), so that one list of rules serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jpo.errors import FormatError
from jpo.formats.families import Family, families
from jpo.formats.families.family import ACTIVATIONS, PLAIN
from jpo.formats.rope import inverse_frequencies, rope_parameters
from jpo.formats.values import Values, token_ids

# key -> the values under which it changes nothing; any other value is refused unless the family reads the key.
# attention_dropout is absent on purpose: it acts in training only, and preference training of a released model runs
# without it, as TRL's does.
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
    "position_embedding_type": (None, "rope", "rotary", "absolute"),
    "norm_type": (None, "rmsnorm"),
    "use_bidirectional_attention": (None, False),
    "num_nextn_predict_layers": (None, 0),
}
_LAYER_TYPES = ("full_attention", "sliding_attention")


def _family(where: str, hf: Mapping[str, Any]) -> Family:
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in families():
        raise FormatError(f"{where}: model_type {kind!r} is not implemented; implemented are {', '.join(families())}")
    family = families()[kind]
    named = hf.get("architectures")
    named = [family.architecture] if named is None else named
    accepted = (family.architecture, family.architecture[:-11] + "Model")
    if not isinstance(named, list) or not named or named[0] not in accepted:
        raise FormatError(f"{where}: architectures {named!r} is not implemented; expected [{family.architecture!r}]")
    return family


def _refuse_unimplemented(where: str, hf: Mapping[str, Any], family: Family) -> None:
    for key, neutral in {**_NEUTRAL, **family.neutral}.items():
        value = hf.get(key)
        if key in family.reads:
            continue
        if not any(value is entry or (type(value) is type(entry) and value == entry) for entry in neutral):
            raise FormatError(f"{where}: key {key} = {value!r} changes the mathematics and is not implemented")


def _activation(values: Values, family: Family) -> str:
    name = values.get("hidden_act", family.activations[0])
    if name not in family.activations:
        wanted = " or ".join(repr(entry) for entry in family.activations[:1])
        raise values.fail("hidden_act", f"only {wanted} is implemented, got {name!r}")
    return ACTIVATIONS[name]


def _heads(values: Values, hidden: int) -> tuple[int, int, int]:
    """(query heads, key/value heads, values a head)."""
    heads = values.integer("num_attention_heads")
    kv_heads = values.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise FormatError(
            f"{values.where}: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})"
        )
    if values.get("head_dim") is None and hidden % heads:
        raise FormatError(f"{values.where}: hidden_size ({hidden}) is no multiple of num_attention_heads ({heads})")
    return heads, kv_heads, values.integer("head_dim", hidden // heads or None)


def _rotary(
    values: Values, parameters: Mapping[str, Any], head_dim: int, positions: int, factors: np.ndarray | None
) -> dict[str, Any]:
    """One of the engine's rotary tables: inv_freq, attention_factor, pairs."""
    part = parameters.get("partial_rotary_factor")
    part = values.number("partial_rotary_factor", 1.0) if part is None else float(part)
    if not 0 < part <= 1:
        raise values.fail("partial_rotary_factor", f"expected a number above 0 and at most 1, got {part!r}")
    dim = int(head_dim * part)
    if dim % 2 or not 0 < dim <= 8192:
        raise values.fail("head_dim", f"expected an even number up to 8192 (rotary pairs), got {dim}")
    if factors is not None and factors.shape != (dim // 2,):
        raise FormatError(f"{values.where}: rope_freqs.weight: expected {dim // 2} factors, got {factors.size}")
    plain = {key: value for key, value in parameters.items() if key not in ("partial_rotary_factor", "pairs")}
    frequencies, attention = inverse_frequencies(values.where, dim, parameters["rope_theta"], plain, positions, factors)
    rotary = {"inv_freq": frequencies, "attention_factor": attention, "pairs": bool(parameters.get("pairs"))}
    if "longrope" in (plain.get("rope_type"), plain.get("type")):
        long, _ = inverse_frequencies(values.where, dim, plain["rope_theta"], plain, positions, factors, long=True)
        original = Values(values.where, plain).integer("original_max_position_embeddings", positions)
        rotary |= {"long_inv_freq": long, "original": original}
    return rotary


def _windows(values: Values, types: Any, layers: int, window: Any) -> list[int]:
    """Keys that a query of each layer sees; 0: all."""
    if types is None:
        return [0] * layers
    if not isinstance(types, list) or len(types) != layers or any(kind not in _LAYER_TYPES for kind in types):
        raise values.fail("layer_types", f"expected {layers} of {', '.join(_LAYER_TYPES)}, got {types!r:.200}")
    if "sliding_attention" not in types:
        return [0] * layers
    size = Values(values.where, {"sliding_window": window}).integer("sliding_window")
    return [size if kind == "sliding_attention" else 0 for kind in types]


def _layers(
    values: Values, choices: dict[str, Any], layers: int, head_dim: int, positions: int, factors: np.ndarray | None
) -> dict[str, Any]:
    """What may differ from layer to layer: windows and rotary tables."""
    windows = _windows(values, choices.pop("layer_types", None), layers, choices.pop("sliding_window", None))
    rope: Sequence[Mapping[str, Any]] | None = choices.pop("rope", None)
    places = choices.pop("layer_rotary", None)
    if choices["learned_positions"]:
        rope, places = (), [-1] * layers
    elif rope is None:
        rope = [rope_parameters(values)]
    return {
        "layer_window": windows,
        "layer_rotary": [0] * layers if places is None else list(places),
        "rotary": [_rotary(values, entry, head_dim, positions, factors) for entry in rope],
    }


def normalize(
    where: str,
    hf: dict[str, Any],
    *,
    generation: dict[str, Any] | None = None,
    rope_factors: np.ndarray | None = None,
) -> dict[str, Any]:
    """The normalized configuration of a Hugging Face one (`hf`, kept under the key of that name).

    `rope_factors` divide the rotary frequencies and come from GGUF files. FormatError names `where` and the key.
    """
    family = _family(where, hf)
    _refuse_unimplemented(where, hf, family)
    values = Values(where, {**family.defaults, **hf}, family.keys)
    hidden, vocab, layers = (values.integer(key) for key in ("hidden_size", "vocab_size", "num_hidden_layers"))
    if layers > 1 << 14:
        raise values.fail("num_hidden_layers", f"expected at most 2^14, got {layers}")
    heads, kv_heads, head_dim = _heads(values, hidden)
    positions = values.integer("max_position_embeddings")
    choices = {**PLAIN, "attention_scale": head_dim**-0.5, "activation": _activation(values, family)}
    choices.update(family.block(values, layers))
    per_layer = _layers(values, choices, layers, head_dim, positions, rope_factors)
    eos = token_ids(f"{where}: key eos_token_id", (generation or {}).get("eos_token_id"), vocab)
    bos = token_ids(f"{where}: key bos_token_id", hf.get("bos_token_id"))
    return {
        "model_type": family.model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": choices.pop("intermediate_size", None) or values.integer("intermediate_size"),
        "max_position_embeddings": choices.pop("max_position_embeddings", positions),
        "norm_eps": values.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": values.boolean("tie_word_embeddings"),
        **choices,
        **per_layer,
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": list(dict.fromkeys(eos + token_ids(f"{where}: key eos_token_id", hf.get("eos_token_id")))),
        "hf": hf,
    }
