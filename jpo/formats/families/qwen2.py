"""Qwen2 and Qwen2.5 (2407.10671): Llama's block with biases on q, k and v."""

from typing import Any

from jpo.formats.families.family import QKV, Family
from jpo.formats.values import Values


def windows(values: Values, layers: int) -> dict[str, Any]:
    """Windows in the layers from max_window_layers on, where use_sliding_window turns them on."""
    if not values.boolean("use_sliding_window") or values.get("sliding_window") is None:
        return {}
    first = values.integer("max_window_layers", 28, least=0)
    pattern = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return {"layer_types": values.get("layer_types") or pattern, "sliding_window": values.get("sliding_window")}


def _block(values: Values, layers: int) -> dict[str, Any]:
    return {"biases": QKV, **windows(values, layers)}


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    block=_block,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    gguf="qwen2",
)
