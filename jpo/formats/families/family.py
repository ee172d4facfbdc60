"""What a model family is: one row of data, from which configurations, tensors, adapters and GGUF files are read.

A family is one file of this folder that names its `FAMILY`; nothing else lists it. Its `block` says which of the
engine's operators (csrc/model/config.h) a configuration asks for; what it returns stands over `PLAIN`, Llama's block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jpo.errors import FormatError
from jpo.formats.stored import StoredTensor
from jpo.formats.values import Values

# the engine's choices where a family says nothing: Llama's. attention_scale is 1 / sqrt(head_dim).
PLAIN: dict[str, Any] = {
    "norm": "rms",
    "norm_place": "before",
    "qk_norm": "none",
    "activation": "silu",
    "gated": True,
    "norm_bias": False,
    "parallel": False,
    "learned_positions": False,
    "biases": (),
    "attention_softcap": 0.0,
    "logits_softcap": 0.0,
    "logits_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*QKV, "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


class Meta(Values):
    """Metadata of a GGUF file without the architecture's prefix, and its tensors by name."""

    def __init__(self, where: str, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]):
        super().__init__(where, config)
        self.tensors = tensors

    def factors(self, name: str) -> list[float] | None:
        """Divisors of the rotary frequencies that stand as a tensor, or None where the file has none."""
        stored = self.tensors.get(name)
        if stored is None:
            return None
        factors = stored.float32().astype(np.float64).ravel()
        if stored.dtype != "F32" or not np.isfinite(factors).all() or not (factors > 0).all():
            raise FormatError(f"{self.where}: tensor {name}: expected finite F32 factors above 0")
        return factors.tolist()


@dataclass(frozen=True)
class Family:
    """One family. Names of the engine's tensors are those of csrc/model/tensors.h."""

    model_type: str
    architecture: str  # in config.json's architectures
    # (configuration, number of layers) -> choices over PLAIN; besides them may stand
    #   layer_types: "full_attention" or "sliding_attention" for each layer, sliding_window for the latter,
    #   rope: [parameters of each rotary], layer_rotary: index into it (or -1) for each layer
    block: Callable[[Values, int], Mapping[str, Any]] = lambda values, layers: {}
    defaults: Mapping[str, Any] = field(default_factory=dict)  # values of absent keys, as in transformers
    keys: Mapping[str, str] = field(default_factory=dict)  # this family's spelling of a usual key
    reads: Sequence[str] = ()  # keys that change the mathematics and that `block` reads
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # further keys: values that change nothing
    activations: Sequence[str] = ("silu", "swish")  # accepted as hidden_act
    # tensors of files: the engine's name -> the file's, where they differ
    names: Mapping[str, str] = field(default_factory=dict)
    layers: str = "model.layers"
    prefix: str = ""  # of all names; files written by the model's inner class lack it
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)  # module of a file -> the engine's, in its rows
    transposed: Sequence[str] = ()  # modules of a file that stand as (inputs, outputs)
    ignored: Sequence[str] = ()  # endings of tensors that hold nothing to compute with
    # GGUF
    gguf: str = ""  # general.architecture; "" where another family's file is read or llama.cpp has none
    gguf_keys: Mapping[str, str] = field(default_factory=dict)  # key without prefix -> key of config.json
    gguf_config: Callable[[Meta, dict[str, Any]], Mapping[str, Any]] = lambda meta, config: {}
    gguf_names: Mapping[str, str] = field(default_factory=dict)  # the engine's name -> GGUF's, where it differs
    gguf_rows: Literal["halves", "pairs"] = "halves"  # order of q's and k's rotated rows: pairs are permuted
    gguf_adds_one: bool = False  # norms are stored with 1 added
