"""SmolLM3 (Hugging Face): Llama's block without rotary embedding in every fourth layer."""

from typing import Any

from jpo.formats.families.family import ATTENTION, MLP, Family
from jpo.formats.rope import rope_parameters
from jpo.formats.values import Values


def _rotated(values: Values, layers: int) -> list[bool]:
    """Whether each layer has a rotary embedding: no_rope_layers says 1 for those that have one."""
    entries = values.get("no_rope_layers")
    if entries is None:
        step = values.integer("no_rope_layer_interval", 4)
        return [(i + 1) % step != 0 for i in range(layers)]
    if not isinstance(entries, list) or len(entries) < layers or any(entry not in (0, 1) for entry in entries):
        raise values.fail("no_rope_layers", f"expected 0 or 1 for each of {layers} layers, got {entries!r:.200}")
    return [entry == 1 for entry in entries[:layers]]


def _block(values: Values, layers: int) -> dict[str, Any]:
    rotated = _rotated(values, layers)
    attention, mlp = values.boolean("attention_bias"), values.boolean("mlp_bias")
    choices: dict[str, Any] = {
        "biases": (ATTENTION if attention else ()) + (MLP if mlp else ()),
        "rope": [rope_parameters(values, theta=2e6)],
        "layer_rotary": [0 if has else -1 for has in rotated],
    }
    if values.boolean("use_sliding_window") and values.get("sliding_window") is not None:
        usual = ["full_attention" if has else "sliding_attention" for has in rotated]
        choices["layer_types"] = values.get("layer_types") or usual
        choices["sliding_window"] = values.get("sliding_window")
    return choices


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    block=_block,
    defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True},
    reads=("no_rope_layers",),
    gguf="smollm3",
    gguf_rows="pairs",
)
