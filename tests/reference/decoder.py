"""A float64 twin of the decoder in plain NumPy, one sequence at a time: what the engine is tested against.

    logps = token_logps(config, values, ids, adapter)          # log p of ids[1:], (T - 1,)
    slope = directional_derivative(f, point, direction)        # central difference of a scalar function, float64

`config` is a normalized configuration (jpo.formats.config), `values` maps Hugging Face names to arrays, `adapter` is
None or (scaling, tensors) with PEFT's names. No cache, no sharing, no blocking: a matrix of T x T scores per head.
"""

import numpy as np


def rmsnorm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; arXiv:1910.07467."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight


def rotate(x, positions, config):
    """Rotary embedding of (T, heads, D), halves apart as Hugging Face stores them; arXiv:2104.09864."""
    angle = positions[:, None] * np.asarray(config["inv_freq"], np.float64)[None]
    cosine, sine = (f(angle)[:, None] * config["rope_attention_factor"] for f in (np.cos, np.sin))
    left, right = np.split(x, 2, -1)
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], -1)


def linear(x, name, values, adapter):
    """x W^T + b, plus scaling * x A^T B^T where the adapter has the module."""
    y = x @ values[f"{name}.weight"].T
    if f"{name}.bias" in values:
        y = y + values[f"{name}.bias"]
    if adapter is not None:
        scaling, tensors = adapter
        stem = f"base_model.model.{name}"
        if f"{stem}.lora_A.weight" in tensors:
            y = y + scaling * (x @ tensors[f"{stem}.lora_A.weight"].T) @ tensors[f"{stem}.lora_B.weight"].T
    return y


def attention(x, layer, config, values, adapter):
    """Causal attention with grouped key-value heads and, where the window is positive, only its last keys."""
    length, dim = len(x), config["head_dim"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    positions = np.arange(length)
    q, k, v = (linear(x, f"{layer}.self_attn.{part}_proj", values, adapter).reshape(length, -1, dim) for part in "qkv")
    q, k = rotate(q, positions, config), rotate(k, positions, config)
    distance = positions[:, None] - positions[None]
    seen = distance >= 0
    if config["sliding_window"] > 0:
        seen &= distance < config["sliding_window"]
    output = np.empty((length, heads, dim))
    for head in range(heads):
        group = head * groups // heads
        scores = np.where(seen, q[:, head] @ k[:, group].T / np.sqrt(dim), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        output[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
    return linear(output.reshape(length, -1), f"{layer}.self_attn.o_proj", values, adapter)


def mlp(x, layer, values, adapter):
    """down(silu(gate(x)) * up(x)); arXiv:2002.05202."""
    gate = linear(x, f"{layer}.mlp.gate_proj", values, adapter)
    up = linear(x, f"{layer}.mlp.up_proj", values, adapter)
    return linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj", values, adapter)


def hidden_states(config, values, ids, adapter=None):
    """The final hidden states behind the last norm, (T, H)."""
    values = {name: np.asarray(value, np.float64) for name, value in values.items()}
    if adapter is not None:
        adapter = (adapter[0], {name: np.asarray(value, np.float64) for name, value in adapter[1].items()})
    eps = config["rms_norm_eps"]
    x = values["model.embed_tokens.weight"][list(ids)]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        normed = rmsnorm(x, values[f"{layer}.input_layernorm.weight"], eps)
        x = x + attention(normed, layer, config, values, adapter)
        normed = rmsnorm(x, values[f"{layer}.post_attention_layernorm.weight"], eps)
        x = x + mlp(normed, layer, values, adapter)
    return rmsnorm(x, values["model.norm.weight"], eps)


def logits(config, values, ids, adapter=None):
    """(T, V) float64."""
    head = values["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return hidden_states(config, values, ids, adapter) @ np.asarray(head, np.float64).T


def token_logps(config, values, ids, adapter=None):
    """log p of ids[1:] given what stands before each, (T - 1,) float64."""
    rows = logits(config, values, ids, adapter)[:-1]
    top = rows.max(-1)
    total = top + np.log(np.exp(rows - top[:, None]).sum(-1))
    return rows[np.arange(len(rows)), list(ids)[1:]] - total


def sequence_logp(config, values, prompt, response, scope, adapter=None):
    """The response's log-likelihood ("response") or that of all but the first token ("joint")."""
    parts = token_logps(config, values, (*prompt, *response), adapter)
    return parts.sum() if scope == "joint" else parts[len(prompt) - 1 :].sum()


def directional_derivative(function, point, direction, step=1e-5):
    """(f(point + step d) - f(point - step d)) / (2 step), float64."""
    point, direction = np.asarray(point, np.float64), np.asarray(direction, np.float64)
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)
