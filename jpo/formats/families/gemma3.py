"""Gemma 3, text (2503.19786): Gemma 2's block with normed heads of q and k, five windows to one, two rotary bases."""

from typing import Any

from jpo.formats.families.family import Family, Meta
from jpo.formats.families.gemma2 import COMMON, DEFAULTS, READS, SOFTCAPS, derived_scalar, gemma_block, pattern
from jpo.formats.rope import rope_parameters
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    types = pattern(values, layers, values.integer("sliding_window_pattern", 6))
    whole = rope_parameters(values, "full_attention", theta=1e6)
    local = {"rope_theta": values.number("rope_local_base_freq", 10000.0)}
    if isinstance((values.get("rope_parameters") or {}).get("sliding_attention"), dict):
        local = rope_parameters(values, "sliding_attention")
    return {
        **gemma_block(values),
        "qk_norm": "head",
        "layer_types": types,
        "rope": [whole, local],
        "layer_rotary": [int(kind == "sliding_attention") for kind in types],
    }


def _gguf_config(meta: Meta, config: dict[str, Any]) -> dict[str, Any]:
    """What files leave unsaid: the scalar (of the 27B model another), the pattern of 6, the local base of 10,000."""
    return {
        **derived_scalar(config, 62),
        "sliding_window_pattern": meta.integer("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": meta.number("rope.freq_base_swa", 10000.0),
    }


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    block=_block,
    defaults={**DEFAULTS, "max_position_embeddings": 131072},
    reads=READS,
    gguf="gemma3",
    gguf_keys={**SOFTCAPS, "attention.sliding_window_pattern": "", "rope.freq_base_swa": ""},
    gguf_config=_gguf_config,
    **COMMON,
)
