"""Rotary position embedding: from a configuration's parameters to inverse frequencies.

Knows the scalings of RoPE (default, linear, llama3, yarn); never where the parameters came from.
Su et al., 2104.09864; YaRN: Peng et al., 2309.00071, equations 17-22; llama3: the release notes of Llama 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jpo.errors import FormatError
from jpo.formats.values import Values, number

IMPLEMENTED = ("default", "linear", "llama3", "yarn", "longrope")
_OPTIONAL = {
    "default": (),
    "linear": (),
    "llama3": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor", "factor", "short_factor", "long_factor"),
}
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": (),
}


def rope_parameters(values: Values, kind: str | None = None, theta: float = 10000.0) -> dict[str, Any]:
    """RoPE's parameters with rope_theta among them, from either spelling: rope_theta + rope_scaling, or
    rope_parameters.

    kind: of the layers whose parameters are meant, where rope_parameters hold them by layer type; theta: where none
        stands.
    """
    parameters: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # the older spelling wins where both stand, as in transformers
        value = values.get(key)
        if value is not None and not isinstance(value, dict):
            raise values.fail(key, f"expected an object, got {value!r}")
        parameters = value or parameters
    if any(isinstance(value, dict) for value in parameters.values()):
        if kind is None:
            raise values.fail("rope_parameters", "parameters per layer type are not implemented")
        parameters = parameters.get(kind) or {}
    if values.get("original_max_position_embeddings") is not None:
        original = values.get("original_max_position_embeddings")
        parameters = {**parameters, "original_max_position_embeddings": original}
    given = parameters.get("rope_theta") or values.get("rope_theta")
    return {**parameters, "rope_theta": number(values.where, {"rope_theta": given}, "rope_theta", theta)}


def _number(where: str, parameters: dict[str, Any], key: str, default: float | None = None) -> float:
    value = parameters.get(key, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise FormatError(f"{where}: RoPE parameter {key}: expected a finite number above 0, got {value!r}")
    return float(value)


def _llama3(where: str, base: np.ndarray, parameters: dict[str, Any], original: float) -> np.ndarray:
    factor = _number(where, parameters, "factor")
    low, high = _number(where, parameters, "low_freq_factor"), _number(where, parameters, "high_freq_factor")
    if high <= low:
        raise FormatError(
            f"{where}: RoPE parameter high_freq_factor: expected more than low_freq_factor ({low}), got {high}"
        )
    wavelength = 2 * math.pi / base
    smooth = (original / wavelength - low) / (high - low)
    medium = (1 - smooth) * base / factor + smooth * base
    return np.where(wavelength < original / high, base, np.where(wavelength > original / low, base / factor, medium))


def _yarn_attention(where: str, parameters: dict[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return _number(where, parameters, "attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return scale(_number(where, parameters, "mscale")) / scale(_number(where, parameters, "mscale_all_dim"))
    return scale(1.0)


def _yarn(where: str, base: np.ndarray, parameters: dict[str, Any], theta: float, original: float) -> np.ndarray:
    """Blend of the frequencies as trained (fast rotations) and divided by the factor (slow ones)."""
    factor = _number(where, parameters, "factor")
    dim = 2 * len(base)

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(_number(where, parameters, "beta_fast", 32.0))
    high = dimension(_number(where, parameters, "beta_slow", 1.0))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    slow = np.clip((np.arange(len(base)) - low) / (high - low), 0, 1)
    return base / factor * slow + base * (1 - slow)


def _longrope_factors(where: str, parameters: dict[str, Any], key: str, count: int) -> np.ndarray:
    """Divisors of the frequencies, one each (2402.13753)."""
    factors = parameters.get(key)
    if not isinstance(factors, list) or len(factors) != count:
        raise FormatError(f"{where}: RoPE parameter {key}: expected {count} factors, got {factors!r:.200}")
    return np.array([_number(where, {key: factor}, key) for factor in factors])


def _longrope_attention(where: str, parameters: dict[str, Any], original: float, max_positions: int) -> float:
    if parameters.get("attention_factor") is not None:
        return _number(where, parameters, "attention_factor")
    factor = _number(where, parameters, "factor", max_positions / original)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def inverse_frequencies(
    where: str,
    head_dim: int,
    theta: float,
    parameters: dict[str, Any],
    max_positions: int,
    factors: np.ndarray | None = None,
    long: bool = False,
) -> tuple[list[float], float]:
    """(inverse frequencies (head_dim/2,), factor on cosine and sine) of `parameters`, spelled as Hugging Face does.

    `factors` (head_dim/2,) are divisors that a GGUF file brings ready-made; `long` asks for longrope's frequencies of
    texts beyond original_max_position_embeddings. The frequencies are rounded to float32,
    as every implementation holds them, and returned as float64. FormatError names `where` and the parameter.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str) or kind not in IMPLEMENTED:
        raise FormatError(
            f"{where}: RoPE scaling {kind!r} is not implemented; implemented are {', '.join(IMPLEMENTED)}"
        )
    known = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}
    for key in parameters:
        if kind != "default" and key not in known and key not in _REQUIRED[kind] + _OPTIONAL[kind]:
            raise FormatError(f"{where}: RoPE parameter {key!r} is not implemented for the scaling {kind!r}")
    for key in _REQUIRED[kind]:
        _number(where, parameters, key)
    if theta <= 1:
        raise FormatError(f"{where}: rope_theta: expected more than 1, got {theta}")
    base = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    attention = 1.0
    if kind == "linear":
        base = base / _number(where, parameters, "factor")
    elif kind != "default":
        original = _number(where, parameters, "original_max_position_embeddings", float(max_positions))
        if kind == "longrope":
            base = base / _longrope_factors(where, parameters, "long_factor" if long else "short_factor", len(base))
            attention = _longrope_attention(where, parameters, original, max_positions)
        elif kind == "llama3":
            base = _llama3(where, base, parameters, original)
        else:
            base = _yarn(where, base, parameters, theta, original)
            attention = _yarn_attention(where, parameters, _number(where, parameters, "factor"))
    if factors is not None:
        base = base / factors
    return base.astype(np.float32).astype(np.float64).tolist(), attention
