"""Llama 1 to 3.x, SmolLM and SmolLM2, and whatever copies their block (2302.13971, 2407.21783)."""

from typing import Any

from jpo.formats.families.family import ATTENTION, MLP, Family, Meta
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    types = values.get("layer_types")
    if types is not None and (not isinstance(types, list) or any(kind != "full_attention" for kind in types)):
        raise values.fail("layer_types", "layers that differ are not implemented; expected all 'full_attention'")
    attention, mlp = values.boolean("attention_bias"), values.boolean("mlp_bias")
    return {"biases": (ATTENTION if attention else ()) + (MLP if mlp else ())}


def _gguf_config(meta: Meta, config: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in meta.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in meta.tensors}


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    block=_block,
    defaults={"max_position_embeddings": 2048},
    gguf="llama",
    gguf_config=_gguf_config,
    gguf_rows="pairs",
)
