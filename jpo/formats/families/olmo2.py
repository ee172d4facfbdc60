"""OLMo 2 (2501.00656): norms behind attention and MLP instead of before them, q and k normed over their full width."""

from typing import Any

from jpo.formats.families.family import ATTENTION, Family
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    biases = ATTENTION if values.boolean("attention_bias") else ()
    return {"norm_place": "after", "qk_norm": "full", "biases": biases}


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    block=_block,
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    names={
        "attention_output_layernorm": "post_attention_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
    },
    gguf="olmo2",
)
