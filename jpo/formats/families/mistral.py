"""Mistral 7B and its successors with this block (2310.06825): Llama's without biases, with a window in every layer.

Their GGUF files name the architecture "llama"; one with a window is read as this family.
"""

from typing import Any

from jpo.formats.families.family import Family
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    for key in ("attention_bias", "mlp_bias"):  # the blocks have none: a file that sets these means another model
        if values.get(key):
            raise values.fail(key, f"{values.get(key)!r} is not implemented for model_type 'mistral'")
    window = values.get("sliding_window", 4096)  # null: none
    kind = "full_attention" if window is None else "sliding_attention"
    types = values.get("layer_types")
    if types is not None and (not isinstance(types, list) or any(entry != kind for entry in types)):
        raise values.fail("layer_types", f"layers that differ are not implemented; expected all {kind!r}")
    return {"layer_types": [kind] * layers, "sliding_window": window}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    block=_block,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072},
    gguf_rows="pairs",
)
