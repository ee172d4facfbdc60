"""Command R7B (Cohere): attention and MLP beside each other, LayerNorm without bias, three windows to one, rotary
embedding in pairs and only where there is a window."""

from typing import Any

from jpo.formats.families.family import ATTENTION, Family
from jpo.formats.families.gemma2 import pattern
from jpo.formats.rope import rope_parameters
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    types = pattern(values, layers, values.integer("sliding_window_pattern", 4))
    return {
        "norm": "layer",
        "parallel": True,
        "biases": ATTENTION if values.boolean("attention_bias") else (),
        "logits_multiplier": values.number("logit_scale", 0.0625),
        "layer_types": types,
        "sliding_window": values.get("sliding_window"),
        "rope": [{**rope_parameters(values), "pairs": True}],
        "layer_rotary": [0 if kind == "sliding_attention" else -1 for kind in types],
    }


FAMILY = Family(
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    block=_block,
    defaults={
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
    },
    keys={"rms_norm_eps": "layer_norm_eps"},
    reads=("logit_scale",),
    gguf="cohere2",
    gguf_keys={"logit_scale": "logit_scale"},
)
