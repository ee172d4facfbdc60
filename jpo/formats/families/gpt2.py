"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, biases everywhere, q, k, v fused, matrices turned."""

from typing import Any

from jpo.formats.families.family import ATTENTION, QKV, Family
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    hidden, heads = values.integer("hidden_size"), values.integer("num_attention_heads")
    scaled = values.boolean("scale_attn_weights", True)
    return {
        "norm": "layer",
        "norm_bias": True,
        "gated": False,
        "learned_positions": True,
        "biases": (*ATTENTION, "mlp.up_proj", "mlp.down_proj"),
        "attention_scale": (hidden // heads) ** -0.5 if scaled else 1.0,
        "intermediate_size": values.integer("intermediate_size", 4 * hidden),
    }


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    block=_block,
    defaults={
        "tie_word_embeddings": True,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
    },
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    neutral={"scale_attn_by_inverse_layer_idx": (None, False)},
    activations=("gelu_new", "gelu_pytorch_tanh"),
    names={
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        "self_attn.o_proj": "attn.c_proj",
        "post_attention_layernorm": "ln_2",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    layers="transformer.h",
    prefix="transformer.",
    fused={"attn.c_attn": QKV},
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    ignored=(".attn.bias", ".attn.masked_bias"),
    gguf="gpt2",
    gguf_names={"attn.c_attn": "attn_qkv"},
)
