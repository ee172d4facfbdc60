"""A float64 twin of the decoder in plain NumPy, one sequence at a time: what the engine is tested against.

    logps = token_logps(config, values, ids, adapter)          # log p of ids[1:], (T - 1,)
    slope = directional_derivative(f, point, direction)        # central difference of a scalar function, float64

`config` is a normalized configuration (jpo.formats.config), `values` maps the file's names to arrays, `adapter` is
None or (scaling, tensors) with PEFT's names. No cache, no sharing, no blocking: a matrix of T x T scores per head; an
adapter is merged into its weight.
"""

import numpy as np

from jpo.formats.tensors import places


def rms(x, weight, bias, eps, one=0.0):
    """x / sqrt(mean(x^2) + eps) * (one + weight) over the last axis; arXiv:1910.07467."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * (one + weight)


def rms_plus_one(x, weight, bias, eps):
    """Gemma's: the weight counts from 1."""
    return rms(x, weight, bias, eps, 1.0)


def layer(x, weight, bias, eps):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; arXiv:1607.06450."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight + bias


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


NORMS = {"rms": rms, "rms_plus_one": rms_plus_one, "layer": layer}
ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


def softcap(x, cap):
    """cap tanh(x / cap); 0: none."""
    return cap * np.tanh(x / cap) if cap else x


def rotate(x, positions, rotary):
    """Rotary embedding of the first values of (T, heads, D); arXiv:2104.09864. Halves apart, or in pairs."""
    frequencies = np.asarray(rotary["inv_freq"], np.float64)
    angle = positions[:, None] * frequencies[None]
    cosine, sine = (f(angle)[:, None] * rotary["attention_factor"] for f in (np.cos, np.sin))
    turned, rest = x[..., : 2 * len(frequencies)], x[..., 2 * len(frequencies) :]
    if rotary["pairs"]:
        left, right = turned[..., ::2], turned[..., 1::2]
        both = np.stack([left * cosine - right * sine, right * cosine + left * sine], -1)
        return np.concatenate([both.reshape(turned.shape), rest], -1)
    left, right = np.split(turned, 2, -1)
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine, rest], -1)


class Weights:
    """The engine's tensors by name, cut out of the file's; what is absent is None."""

    def __init__(self, config, values, adapter):
        self.config, self.tensors = config, {}
        values = {name: np.asarray(value, np.float64) for name, value in values.items()}
        scaling, added = adapter if adapter is not None else (1.0, {})
        for place in places(config):
            value = values[place.name]
            if place.transposed:
                value = value.T
            stem = f"base_model.model.{place.name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in added:
                a, b = (np.asarray(added[f"{stem}.lora_{part}.weight"], np.float64) for part in "AB")
                value = value + (scaling(place.name) if callable(scaling) else scaling) * (b @ a)
            self.tensors[place.engine] = value[place.row : place.row + place.shape[0]]

    def get(self, name):
        return self.tensors.get(name)

    def norm(self, name, x):
        """The named norm of x, or x itself where the model has no such norm."""
        if self.get(f"{name}.weight") is None:
            return x
        bias = self.get(f"{name}.bias")
        bias = 0.0 if bias is None else bias
        return NORMS[self.config["norm"]](x, self.get(f"{name}.weight"), bias, self.config["norm_eps"])

    def linear(self, name, x):
        """x W^T + b."""
        y = x @ self.get(f"{name}.weight").T
        bias = self.get(f"{name}.bias")
        return y if bias is None else y + bias


def heads_of(weights, x, stem, part, count):
    """Projected and, where the model norms them, normed heads (T, count, D): each head apart or the whole row."""
    config, length = weights.config, len(x)
    y = weights.linear(f"{stem}.{part}_proj", x)
    if part != "v" and config["qk_norm"] == "full":
        y = weights.norm(f"{stem}.{part}_norm", y)
    y = y.reshape(length, count, config["head_dim"])
    return weights.norm(f"{stem}.{part}_norm", y) if part != "v" and config["qk_norm"] == "head" else y


def attention(weights, x, index):
    """Causal attention with grouped key-value heads and, where the layer has a window, only its last keys."""
    config, length = weights.config, len(x)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    stem, positions = f"model.layers.{index}.self_attn", np.arange(length)
    q, k, v = (heads_of(weights, x, stem, part, heads if part == "q" else groups) for part in "qkv")
    if config["layer_rotary"][index] >= 0:
        q, k = (rotate(part, positions, config["rotary"][config["layer_rotary"][index]]) for part in (q, k))
    distance = positions[:, None] - positions[None]
    seen = distance >= 0
    if config["layer_window"][index] > 0:
        seen &= distance < config["layer_window"][index]
    output = np.empty((length, heads, config["head_dim"]))
    for head in range(heads):
        group = head * groups // heads
        scores = softcap(q[:, head] @ k[:, group].T * config["attention_scale"], config["attention_softcap"])
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        output[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, group]
    return weights.linear(f"{stem}.o_proj", output.reshape(length, -1))


def mlp(weights, x, index):
    """down(f(gate(x)) * up(x)) (arXiv:2002.05202), or down(f(up(x)))."""
    config, stem = weights.config, f"model.layers.{index}.mlp"
    activate, up = ACTIVATIONS[config["activation"]], weights.linear(f"{stem}.up_proj", x)
    inner = activate(weights.linear(f"{stem}.gate_proj", x)) * up if config["gated"] else activate(up)
    return weights.linear(f"{stem}.down_proj", inner)


def block(weights, x, index):
    """Both branches with their norms before and after, one behind the other or beside each other."""
    config, stem = weights.config, f"model.layers.{index}"
    factor = config["residual_multiplier"]
    normed = weights.norm(f"{stem}.input_layernorm", x)
    first = weights.norm(f"{stem}.attention_output_layernorm", attention(weights, normed, index))
    if config["parallel"]:
        return x + factor * (first + mlp(weights, normed, index))
    x = x + factor * first
    second = mlp(weights, weights.norm(f"{stem}.post_attention_layernorm", x), index)
    return x + factor * weights.norm(f"{stem}.mlp_output_layernorm", second)


def hidden_states(config, values, ids, adapter=None):
    """The final hidden states behind the last norm, (T, H)."""
    weights = Weights(config, values, adapter)
    x = weights.get("model.embed_tokens.weight")[list(ids)] * config["embedding_multiplier"]
    if config["learned_positions"]:
        x = x + weights.get("model.embed_positions.weight")[: len(x)]
    for index in range(config["num_hidden_layers"]):
        x = block(weights, x, index)
    return weights.norm("model.norm", x)


def logits(config, values, ids, adapter=None):
    """(T, V) float64."""
    name = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    head = Weights(config, values, None).get(name)
    z = hidden_states(config, values, ids, adapter) @ head.T * config["logits_multiplier"]
    return softcap(z, config["logits_softcap"])


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
