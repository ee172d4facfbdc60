"""Phi-3 and Phi-4 mini (2404.14219, 2503.01743): q, k, v and gate, up fused; a part of each head is rotated;
longrope."""

from typing import Any

from jpo.formats.families.family import QKV, Family, Meta
from jpo.formats.rope import rope_parameters
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    window, rope = values.get("sliding_window"), rope_parameters(values)
    if "su" in rope.values() or "yarn" in rope.values():  # longrope's names in older files
        rope = {**rope, "rope_type": "longrope", "type": "longrope"}
    choices: dict[str, Any] = {"rope": [rope]}
    if window is not None:
        choices.update(layer_types=["sliding_attention"] * layers, sliding_window=window)
    return choices


def _gguf_config(meta: Meta, config: dict[str, Any]) -> dict[str, Any]:
    original = meta.integer("rope.scaling.original_context_length", config["max_position_embeddings"])
    found: dict[str, Any] = {"original_max_position_embeddings": original}
    if "rope_factors_short.weight" in meta.tensors:
        short, long = (meta.factors(f"rope_factors_{name}.weight") for name in ("short", "long"))
        found["rope_scaling"] = {"type": "longrope", "short_factor": short, "long_factor": long}
        if meta.get("rope.scaling.attn_factor") is not None:
            found["rope_scaling"]["attention_factor"] = meta.number("rope.scaling.attn_factor", 1.0)
    return found


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    block=_block,
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    reads=("partial_rotary_factor",),
    neutral={"resid_pdrop": (None, 0, 0.0), "embd_pdrop": (None, 0, 0.0)},
    fused={"self_attn.qkv_proj": QKV, "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")},
    gguf="phi3",
    gguf_config=_gguf_config,
    gguf_names={"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
)
