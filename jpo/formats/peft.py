"""LoRA adapters in PEFT's format (0.17 to 0.21): adapter_config.json and adapter_model.safetensors, both ways.

jpo's own settings (template, compute, scope, ...) stand beside them in jpo_config.json, where PEFT does not look.
Knows names, ranks and keys; whether an adapter fits a model is for the model to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jpo.errors import FormatError, JpoError
from jpo.formats.config import boolean, integer, number
from jpo.formats.files import read_json, write_atomic, write_json
from jpo.formats.huggingface import read_safetensors

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,5})\.(self_attn|mlp)\.([a-z_]+)\.lora_([AB])\.weight", re.ASCII
)
_PARTS = {name: "self_attn" if index < 4 else "mlp" for index, name in enumerate(MODULES)}
_CONFIG, _TENSORS, _OWN = "adapter_config.json", "adapter_model.safetensors", "jpo_config.json"
_SMALL = 16 << 20

# keys that the reader uses, or that say how the adapter came about and not what it computes
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "lora_alpha", "lora_dropout", "lora_ga_config", "loftq_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora",
    "init_lora_weights", "bias", "runtime_config",
}  # fmt: skip
# starts of A and B that leave the base weights alone; the others (pissa, olora, corda, loftq, ...) change them
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass
class AdapterConfig:
    """What adapter_config.json says, and jpo's own settings as `extra`. The defaults are those of every new adapter."""

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    use_rslora: bool = False
    base_model_name_or_path: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def scaling(self) -> float:
        """The factor on B A: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, 2312.03732)."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


_HUB = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # our names -> where the same weights stand on the hub
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def base_name(source: str, hf: Mapping[str, Any]) -> str:
    """What adapter_config.json calls the base model, so that peft finds it: its name on the Hugging Face hub where that
    is known (ours, or what config.json says), the absolute path of a local model, otherwise our own name."""
    stored = hf.get("_name_or_path")
    if source in _HUB:
        return _HUB[source]
    if isinstance(stored, str) and _HUB_ID.fullmatch(stored) and not os.path.exists(stored):
        return stored
    return os.path.abspath(source) if os.path.exists(source) else source


LORA = AdapterConfig()  # the defaults, which LanguageModel.add_lora and the training options read from here


def _refuse_unimplemented(path: str, stored: dict[str, Any]) -> None:
    if stored.get("peft_type") != "LORA":
        raise FormatError(f"{path}: key peft_type: only 'LORA' is implemented, got {stored.get('peft_type')!r}")
    if stored.get("task_type") not in (None, "CAUSAL_LM"):
        raise FormatError(f"{path}: key task_type: expected 'CAUSAL_LM' or null, got {stored['task_type']!r}")
    if stored.get("bias", "none") != "none":
        raise FormatError(f"{path}: key bias: only 'none' is implemented, got {stored['bias']!r}")
    start = stored.get("init_lora_weights", True)
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        raise FormatError(
            f"{path}: key init_lora_weights = {start!r} changes the base weights and is not implemented; "
            "save the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    for key, value in stored.items():
        if key not in _HARMLESS and value:
            raise FormatError(f"{path}: key {key} = {value!r} changes the mathematics and is not implemented")


def _dropout(path: str, stored: dict[str, Any]) -> float:
    value = stored.get("lora_dropout", 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise FormatError(f"{path}: key lora_dropout: expected a number from 0 to below 1, got {value!r}")
    return float(value)


def _check_targets(path: str, stored: dict[str, Any]) -> None:
    """target_modules may be a list or a pattern; the tensors say what it matched, so only its type is checked."""
    value = stored.get("target_modules")
    plain = isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))
    if value is not None and not plain:
        raise FormatError(f"{path}: key target_modules: expected a list of names or a pattern, got {value!r}")


def _read_config(path: str) -> AdapterConfig:
    stored = read_json(path, _SMALL)
    _refuse_unimplemented(path, stored)
    _check_targets(path, stored)
    rank = integer(path, stored, "r")
    if rank > 1 << 16:
        raise FormatError(f"{path}: key r: expected at most 65536, got {rank}")
    alpha = number(path, stored, "lora_alpha", 8.0)
    base = stored.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise FormatError(f"{path}: key base_model_name_or_path: expected a string or null, got {base!r}")
    return AdapterConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        lora_dropout=_dropout(path, stored),
        use_rslora=boolean(path, stored, "use_rslora"),
        base_model_name_or_path=base,
    )


def _targets(path: str, names: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that the tensors adapt, in MODULES' order; FormatError unless each layer has the same, A with B."""
    found: dict[str, set[tuple[int, str]]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or _PARTS.get(match[3]) != match[2]:
            raise FormatError(f"{path}: tensor {name}: only LoRA matrices of {', '.join(MODULES)} are implemented")
        found.setdefault(match[3], set()).add((int(match[1]), match[4]))
    if not found:
        raise FormatError(f"{path}: holds no tensor")
    layers = 1 + max(layer for places in found.values() for layer, _ in places)
    if 2 * layers * len(found) != len(names):
        for module, places in found.items():
            for layer in range(min(layers, len(names) + 1)):
                for part in "AB":
                    if (layer, part) not in places:
                        name = f"base_model.model.model.layers.{layer}.{_PARTS[module]}.{module}.lora_{part}.weight"
                        raise FormatError(
                            f"{path}: tensor {name} is missing: adapters of some layers only are not implemented"
                        )
    return tuple(module for module in MODULES if module in found)


def _check_ranks(path: str, rank: int, tensors: Mapping[str, np.ndarray], error: type[JpoError]) -> None:
    for name, value in tensors.items():
        axis = 0 if name.endswith("lora_A.weight") else 1
        if value.ndim != 2 or value.shape[axis] != rank:
            expected = f"({rank}, in)" if axis == 0 else f"(out, {rank})"
            raise error(f"{path}: tensor {name}: expected shape {expected} by key r, got {value.shape}")


def read_adapter(folder: str | os.PathLike[str]) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    """(configuration, float32 array (r, in) or (out, r) by PEFT name) of an adapter's directory.

    target_modules are those that the tensors show, whatever pattern chose them. float16 and bfloat16 are widened.
    FormatError names file and key or tensor; DoRA, patterns of ranks, biases and the like are refused by name.
    """
    folder = os.fspath(folder)
    path = os.path.join(folder, _CONFIG)
    if not os.path.exists(path):
        raise FormatError(f"{folder}: {_CONFIG} is missing: no adapter in PEFT's format")
    config = _read_config(path)
    path = os.path.join(folder, _TENSORS)
    if not os.path.exists(path):
        hint = " (adapter_model.bin is a pickle and is not read)" if os.path.exists(path[:-11] + "bin") else ""
        raise FormatError(f"{folder}: {_TENSORS} is missing{hint}")
    stored = read_safetensors(path)
    config.target_modules = _targets(path, stored)
    tensors = {name: stored[name].float32() for name in sorted(stored)}
    _check_ranks(path, config.r, tensors, FormatError)
    own = os.path.join(folder, _OWN)
    config.extra = read_json(own, _SMALL) if os.path.exists(own) else {}
    return config, tensors


def adapter_config_json(config: AdapterConfig) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.17 and later read it: the keys that all of them know."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(config.target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.use_rslora,
    }


def write_adapter(folder: str | os.PathLike[str], config: AdapterConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes an adapter as PEFT does: float32 `tensors` (r, in) and (out, r) by PEFT name.

    Each file appears whole or not at all (temporary sibling, sync, rename). JpoError where names, ranks and
    target_modules do not belong together, before anything is written.
    """
    from safetensors.numpy import save_file

    folder = os.fspath(folder)
    if set(_targets(folder, tensors)) != set(config.target_modules):
        raise JpoError(f"{folder}: target_modules {config.target_modules} are not those of the tensors")
    for name, value in tensors.items():
        if value.dtype != np.float32:
            raise JpoError(f"{folder}: tensor {name}: expected float32, got {value.dtype}")
    _check_ranks(folder, config.r, tensors, JpoError)
    os.makedirs(folder, exist_ok=True)
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    path = os.path.join(folder, _TENSORS)
    write_atomic(path, lambda temporary: save_file(ordered, temporary, metadata={"format": "pt"}))
    own = os.path.join(folder, _OWN)
    if config.extra:
        write_json(own, config.extra)
    elif os.path.exists(own):  # of an earlier adapter
        os.unlink(own)
    write_json(os.path.join(folder, _CONFIG), adapter_config_json(config))
