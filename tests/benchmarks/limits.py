"""The arithmetic that a case cannot avoid, in floating-point operations, from the rows of its own forest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jpo.data.forest import Forest


def linear_weights(config: Mapping[str, Any]) -> int:
    """Weights of the products in all blocks (attention and MLP)."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    return int(config["num_hidden_layers"] * (2 * hidden * heads + 2 * hidden * kv + 3 * hidden * width))


def head_weights(config: Mapping[str, Any]) -> int:
    """Weights of the head."""
    return int(config["vocab_size"] * config["hidden_size"])


def preference_flops(config: Mapping[str, Any], forest: Forest, cached_reference: bool) -> float:
    """Reference forward (unless cached), policy forward, backward through frozen weights; the head at loss rows alone.

    Attention, LoRA's own products and the recomputation of anything are left out: the limit is a lower bound.
    """
    passes = 2 if cached_reference else 3
    loss_rows = len(np.unique(forest.entry_row))
    return 2.0 * passes * (forest.rows * linear_weights(config) + loss_rows * head_weights(config))


def scoring_flops(config: Mapping[str, Any], rows: int, loss_rows: int) -> float:
    """Forward only."""
    return 2.0 * (rows * linear_weights(config) + loss_rows * head_weights(config))


def full_tuning_flops(config: Mapping[str, Any], rows: int, loss_rows: int) -> float:
    """6 a weight: at every row in the blocks, at loss rows in the head (less than the usual 6 P a token)."""
    return 6.0 * (rows * linear_weights(config) + loss_rows * head_weights(config))
