"""Gemma 2 (2408.00118): norms around both branches, soft-caps, a window in every other layer, GeGLU."""

from typing import Any

from jpo.formats.families.family import ATTENTION, Family
from jpo.formats.values import Values

# the engine's norms under Gemma's names; Llama's post_attention_layernorm stands before the MLP
NORM_NAMES = {
    "attention_output_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "mlp_output_layernorm": "post_feedforward_layernorm",
}
# what the settings of Gemma 2 and 3 share
COMMON: dict[str, Any] = {
    "keys": {"hidden_act": "hidden_activation"},
    "activations": ("gelu_pytorch_tanh",),
    "names": NORM_NAMES,
    "gguf_adds_one": True,
}
DEFAULTS = {"head_dim": 256, "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096}
SOFTCAPS = {name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")}  # the same in GGUF files
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


def derived_scalar(config: dict[str, Any], largest: int) -> dict[str, Any]:
    """The scalar that llama.cpp derives: the head's size, but the embedding's share of a head in the model of
    `largest` layers (27B)."""
    shared = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": shared if config["num_hidden_layers"] == largest else config["head_dim"]}


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    block=_block,
    defaults={
        **DEFAULTS,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    reads=READS,
    gguf="gemma2",
    gguf_keys=SOFTCAPS,
    gguf_config=lambda meta, config: derived_scalar(config, 46),
    **COMMON,
)
