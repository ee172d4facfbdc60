"""Gemma 2 (2408.00118): norms around both branches, soft-caps, a window in every other layer, GeGLU."""

from typing import Any

from jpo.formats.families.family import ATTENTION, Family, Meta
from jpo.formats.values import Values

# the engine's norms under Gemma's names; Llama's post_attention_layernorm stands before the MLP
NORM_NAMES = {
    "attention_output_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "mlp_output_layernorm": "post_feedforward_layernorm",
}
READS = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")


def gemma_block(values: Values) -> dict[str, Any]:
    """What Gemma 2 and 3 share."""
    return {
        "norm": "rms_plus_one",
        "norm_place": "both",
        "embedding_multiplier": float(values.integer("hidden_size")) ** 0.5,
        "attention_scale": values.number("query_pre_attn_scalar", 256) ** -0.5,
        "attention_softcap": values.optional("attn_logit_softcapping"),
        "logits_softcap": values.optional("final_logit_softcapping"),
        "biases": ATTENTION if values.boolean("attention_bias") else (),
        "sliding_window": values.get("sliding_window"),
    }


def pattern(values: Values, layers: int, period: int) -> Any:
    """layer_types, or every `period`-th layer without a window."""
    usual = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
    return values.get("layer_types") or usual


def _block(values: Values, layers: int) -> dict[str, Any]:
    return {**gemma_block(values), "layer_types": pattern(values, layers, 2)}


def _gguf_config(meta: Meta, config: dict[str, Any]) -> dict[str, Any]:
    """The scalar that llama.cpp derives: the head's size, but the embedding's share of a head in the 27B model."""
    large = config["num_hidden_layers"] == 46
    shared = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": shared if large else config["head_dim"]}


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    block=_block,
    defaults={
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    keys={"hidden_act": "hidden_activation"},
    reads=READS,
    activations=("gelu_pytorch_tanh",),
    names=NORM_NAMES,
    gguf="gemma2",
    gguf_keys={
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    gguf_config=_gguf_config,
    gguf_adds_one=True,
)
