"""Ministral 8B (Mistral AI): Mistral's block with windows in some layers."""

from typing import Any

from jpo.formats.families.family import Family
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    window = values.get("sliding_window")
    if window is None:
        return {}
    return {"layer_types": values.get("layer_types") or ["sliding_attention"] * layers, "sliding_window": window}


FAMILY = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    block=_block,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    gguf_rows="pairs",
)
