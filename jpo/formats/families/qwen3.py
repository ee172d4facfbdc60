"""Qwen3, dense (2505.09388): no biases, each head of q and k normed, head_dim of its own."""

from typing import Any

from jpo.formats.families.family import ATTENTION, Family
from jpo.formats.families.qwen2 import windows
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    biases = ATTENTION if values.boolean("attention_bias") else ()
    return {"biases": biases, "qk_norm": "head", **windows(values, layers)}


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    block=_block,
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    gguf="qwen3",
)
