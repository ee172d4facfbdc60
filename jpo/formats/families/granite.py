"""Granite 3, dense (IBM): Llama's block with four multipliers."""

from typing import Any

from jpo.formats.families.family import ATTENTION, MLP, Family, Meta
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    attention, mlp = values.boolean("attention_bias"), values.boolean("mlp_bias")
    return {
        "biases": (ATTENTION if attention else ()) + (MLP if mlp else ()),
        "attention_scale": values.number("attention_multiplier", 1.0),
        "embedding_multiplier": values.number("embedding_multiplier", 1.0),
        "residual_multiplier": values.number("residual_multiplier", 1.0),
        "logits_multiplier": 1 / values.number("logits_scaling", 1.0),
    }


def _gguf_config(meta: Meta, config: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in meta.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in meta.tensors}


FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    block=_block,
    defaults={"max_position_embeddings": 2048},
    reads=("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"),
    gguf="granite",
    gguf_keys={
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    },
    gguf_config=_gguf_config,
    gguf_rows="pairs",
)
