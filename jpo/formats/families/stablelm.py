"""StableLM 2 (2402.17834): LayerNorm with biases, a quarter of each head rotated; the 12B model's residual is
parallel."""

from typing import Any

from jpo.formats.families.family import QKV, Family, Meta
from jpo.formats.values import Values


def _block(values: Values, layers: int) -> dict[str, Any]:
    return {
        "norm": "layer",
        "norm_bias": True,
        "biases": QKV if values.boolean("use_qkv_bias") else (),
        "parallel": values.boolean("use_parallel_residual"),
    }


def _gguf_config(meta: Meta, config: dict[str, Any]) -> dict[str, Any]:
    return {"use_qkv_bias": "blk.0.attn_q.bias" in meta.tensors}


FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    block=_block,
    defaults={"max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
    keys={"rms_norm_eps": "layer_norm_eps"},
    reads=("partial_rotary_factor", "use_parallel_residual"),
    neutral={"hidden_dropout": (None, 0, 0.0)},
    gguf="stablelm",
    gguf_keys={"use_parallel_residual": "use_parallel_residual"},
    gguf_config=_gguf_config,
)
