"""LoRA adapters in PEFT's format (0.17 to 0.21): adapter_config.json and adapter_model.safetensors, both ways.

jpo's own settings (template, compute, scope, ...) stand beside them in jpo_config.json, where PEFT does not look.
Knows names, ranks and keys; whether an adapter fits a model is for the model to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from jpo.disk import write_atomic, write_json
from jpo.errors import FormatError, JpoError
from jpo.formats.expressions import why_slow
from jpo.formats.files import check_finite, read_json
from jpo.formats.huggingface import read_safetensors
from jpo.formats.tensors import MODULES
from jpo.formats.values import boolean, integer, number

Bias = Literal["none", "all", "lora_only"]
PREFIX = "base_model.model."
_NAME = re.compile(
    r"base_model\.model\.([A-Za-z0-9_.]{1,200})\.lora_(?:([AB])\.weight|embedding_([AB])|(magnitude_vector))", re.ASCII
)
_WHOLE = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,200}?)(?:\.base_layer)?\.(weight|bias)", re.ASCII)
_COPY = re.compile(r"\.(?:original_module|modules_to_save)\.")
_HEAD, _BASE_TABLES = "lm_head", ("embed_tokens", "lm_head")  # PEFT adds the base's where one of these is adapted
_CONFIG, _TENSORS, _OWN = "adapter_config.json", "adapter_model.safetensors", "jpo_config.json"
_SMALL = 16 << 20

# keys that the reader uses, or that say how the adapter came about and not what it computes
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "lora_alpha", "lora_dropout", "lora_ga_config", "loftq_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora",
    "init_lora_weights", "bias", "runtime_config", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "fan_in_fan_out", "use_dora", "modules_to_save",
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
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False  # the adapted weights stand as (inputs, outputs): GPT-2's
    use_dora: bool = False  # rows have magnitudes of their own (arXiv 2402.09353)
    bias: Bias = "none"  # which biases are trained beside the low-rank matrices
    modules_to_save: tuple[str, ...] = ()  # ends of names of modules that are trained whole
    ensure_weight_tying: bool = field(default=False, compare=False)  # of a stored adapter: embedding and head are one
    tables: dict[str, np.ndarray] = field(  # of a stored adapter: the base's embedding and head, which PEFT adds
        default_factory=dict, repr=False, compare=False
    )
    modules: tuple[str, ...] = field(
        default=(), compare=False
    )  # of a stored adapter: whole names of the modules that its tensors adapt

    @property
    def scaling(self) -> float:
        """The factor on B A: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, 2312.03732)."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


_HUB = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # our names -> where the same weights stand on the hub
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def base_name(source: str, hf: Mapping[str, Any]) -> str:
    """What adapter_config.json calls the base model, so that peft finds it: its name on the Hugging Face hub where that
    is known (ours, or what config.json says), the absolute path of a local model, otherwise our own name."""
    from jpo.hub.names import hub_name

    stored = hf.get("_name_or_path")
    if source in _HUB:
        return _HUB[source]
    on_hub = hub_name(source)
    if on_hub is not None:
        return on_hub.repo
    if isinstance(stored, str) and _HUB_ID.fullmatch(stored) and not os.path.exists(stored):
        return stored
    return os.path.abspath(source) if os.path.exists(source) else source


LORA = AdapterConfig()  # the defaults, which LanguageModel.add_lora and the training options read from here


def pattern_value(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rank_pattern and alpha_pattern: the value of the first key that the module's name ends with."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _pattern(path: str, stored: dict[str, Any], key: str) -> dict[str, Any]:
    """A mapping of expressions to positive numbers."""
    pattern = stored.get(key) or {}
    if not isinstance(pattern, dict):
        raise FormatError(f"{path}: key {key}: expected an object, got {pattern!r}")
    for name, value in pattern.items():
        try:
            slow = why_slow(name)
        except (re.error, OverflowError, RecursionError) as error:
            raise FormatError(f"{path}: key {key}: {name!r:.200} is no regular expression: {error}") from None
        if slow is not None:
            raise FormatError(f"{path}: key {key}: the expression {name!r:.200} is refused: {slow}; name the modules")
        positive = isinstance(value, int) or (key == "alpha_pattern" and isinstance(value, float))
        if isinstance(value, bool) or not positive or not 0 < value <= 1 << 16:
            raise FormatError(f"{path}: key {key}: {name!r}: expected a number from 1 to 65536, got {value!r}")
    return dict(pattern)


def _refuse_unimplemented(path: str, stored: dict[str, Any]) -> None:
    if stored.get("peft_type") != "LORA":
        raise FormatError(f"{path}: key peft_type: only 'LORA' is implemented, got {stored.get('peft_type')!r}")
    if stored.get("task_type") not in (None, "CAUSAL_LM"):
        raise FormatError(f"{path}: key task_type: expected 'CAUSAL_LM' or null, got {stored['task_type']!r}")
    if stored.get("bias", "none") not in get_args(Bias):
        raise FormatError(f"{path}: key bias: expected one of {', '.join(get_args(Bias))}, got {stored['bias']!r}")
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


def _modules_to_save(path: str, stored: dict[str, Any]) -> tuple[str, ...]:
    """Names whose modules are trained whole; a list, as PEFT writes it."""
    value = stored.get("modules_to_save") or []
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise FormatError(f"{path}: key modules_to_save: expected a list of names or null, got {value!r}")
    return tuple(value)


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
        rank_pattern=_pattern(path, stored, "rank_pattern"),
        alpha_pattern=_pattern(path, stored, "alpha_pattern"),
        fan_in_fan_out=boolean(path, stored, "fan_in_fan_out"),
        base_model_name_or_path=base,
        use_dora=boolean(path, stored, "use_dora"),
        bias=stored.get("bias", "none"),
        modules_to_save=_modules_to_save(path, stored),
        ensure_weight_tying=boolean(path, stored, "ensure_weight_tying"),
    )


def saved_module(module: str, modules_to_save: Collection[str]) -> bool:
    """Whether PEFT trains the named module whole: its name, or that of a module around it, ends with one of these."""
    parts = module.split(".")
    around = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return any(name.endswith(end) for name in around for end in modules_to_save)


def whole_name(name: str, adapted: Collection[str]) -> str:
    """PEFT's name of a tensor that is trained whole, by its name in the model's file."""
    module, part = name.rsplit(".", 1)
    return f"{PREFIX}{module}.base_layer.{part}" if module in adapted else f"{PREFIX}{name}"


def _whole(name: str, config: AdapterConfig) -> re.Match[str] | None:
    """The match of a tensor that this configuration trains whole, or None."""
    match = _WHOLE.fullmatch(name)
    bias = match is not None and config.bias != "none" and match[2] == "bias"
    return match if match is not None and (bias or saved_module(match[1], config.modules_to_save)) else None


def _part(match: re.Match[str]) -> str:
    """What a name that _NAME matches means: A, B or magnitude_vector."""
    return match[2] or match[3] or match[4]


def _modules(path: str, names: Collection[str], config: AdapterConfig) -> tuple[str, ...]:
    """Whole names of the modules that the tensors adapt; FormatError unless each has A and B, and with DoRA a
    magnitude."""
    wanted = ("A", "B", *(("magnitude_vector",) if config.use_dora else ()))
    found: dict[str, set[str]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        part = _part(match) if match else None
        if match is None and _whole(name, config):
            continue
        if match is None or part not in wanted:
            raise FormatError(
                f"{path}: tensor {name}: only LoRA matrices of linear modules and embeddings are implemented, magnitudes with use_dora, "
                "and what bias and modules_to_save name"
            )
        found.setdefault(match[1], set()).add(str(part))
    if not found:
        raise FormatError(f"{path}: holds no tensor")
    for module, parts in found.items():
        for part in wanted:
            if part not in parts:
                table = any(f"{PREFIX}{module}.lora_embedding_{other}" in names for other in "AB")
                end = f"lora_{part}" if part == "magnitude_vector" else f"lora_{part}.weight"
                end = f"lora_embedding_{part}" if table else end
                raise FormatError(f"{path}: tensor {PREFIX}{module}.{end} is missing")
    return tuple(found)


def _ends(modules: Collection[str]) -> tuple[str, ...]:
    """The last parts of the modules' names, the usual ones first and in the engine's order."""
    usual = [name.rsplit(".", 1)[-1] for name in MODULES]
    ends = dict.fromkeys(name.rsplit(".", 1)[-1] for name in modules)
    return tuple(sorted(ends, key=lambda end: usual.index(end) if end in usual else len(usual)))


def _check_ranks(path: str, config: AdapterConfig, tensors: Mapping[str, np.ndarray], error: type[JpoError]) -> None:
    for name, value in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or _part(match) == "magnitude_vector":
            continue
        axis = 0 if _part(match) == "A" else 1
        rank = pattern_value(config.rank_pattern, match[1], config.r)
        if value.ndim != 2 or value.shape[axis] != rank:
            expected = f"({rank}, in)" if axis == 0 else f"(out, {rank})"
            raise error(f"{path}: tensor {name}: expected shape {expected} by key r, got {value.shape}")


def _local(folder: str) -> str:
    """The directory, or that in the cache which holds what a name of the hub means."""
    from jpo.hub.names import hub_name

    on_hub = hub_name(folder)
    if on_hub is None:
        return folder
    from jpo.hub.download import adapter_path

    return adapter_path(on_hub)


def is_adapter(folder: str) -> bool:
    """Whether a directory, or a repository of the hub, holds an adapter, which needs its model beside it."""
    from jpo.hub.names import hub_name

    on_hub = hub_name(folder)
    if on_hub is not None:
        from jpo.hub.download import is_adapter as holds_adapter

        return holds_adapter(on_hub)
    return os.path.isfile(os.path.join(folder, _CONFIG))


def _base_tables(names: Collection[str], config: AdapterConfig) -> dict[str, str]:
    """The file's name -> the model's of the base's own embedding and head, where the file holds them unchanged."""
    found = {}
    adapted = {match[1].rsplit(".", 1)[-1] for name in names if (match := _NAME.fullmatch(name))}
    for name in names if adapted & set(_BASE_TABLES) else ():
        match = _WHOLE.fullmatch(name)
        if match and match[2] == "weight" and match[1].endswith(_BASE_TABLES) and _whole(name, config) is None:
            found[name] = f"{match[1]}.weight"
    return found


def _renamed(names: Collection[str], config: AdapterConfig) -> dict[str, str]:
    """The file's name -> the name used here: biases of adapted modules stand under base_layer, as PEFT has named them
    since 0.6; with them PEFT writes second copies of the biases of modules that are trained whole, which are left out.
    """
    adapted = {match[1] for name in names if (match := _NAME.fullmatch(name))}
    result = {}
    for name in names:
        inside = _COPY.search(name)
        if inside and config.bias != "none" and name.replace(inside[0], ".") in names:
            continue
        match = None if _NAME.fullmatch(name) else _whole(name, config)
        result[name] = whole_name(f"{match[1]}.{match[2]}", adapted) if match else name
    return result


def read_adapter(folder: str | os.PathLike[str], *, check: bool = True) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    """(configuration, float32 arrays by PEFT name) of an adapter's directory, or of a repository of the hub (USER/NAME,
    USER/NAME@REVISION): A (r, in), B (out, r), with DoRA magnitudes (out), and the biases and modules that are trained
    whole.

    target_modules and modules are those that the tensors show, whatever pattern chose them. float16 and bfloat16 are
    widened. check: tensors with NaN or infinity are refused by name. FormatError names file and key or tensor.
    """
    folder = _local(os.fspath(folder))
    path = os.path.join(folder, _CONFIG)
    if not os.path.exists(path):
        raise FormatError(f"{folder}: {_CONFIG} is missing: no adapter in PEFT's format")
    config = _read_config(path)
    path = os.path.join(folder, _TENSORS)
    if not os.path.exists(path):
        hint = " (adapter_model.bin is a pickle and is not read)" if os.path.exists(path[:-11] + "bin") else ""
        raise FormatError(f"{folder}: {_TENSORS} is missing{hint}")
    stored = read_safetensors(path)
    if check:
        check_finite(path, stored)
    if config.ensure_weight_tying and f"{PREFIX}{_HEAD}.weight" in stored:  # named by the embedding alone
        config.modules_to_save = tuple(dict.fromkeys([*config.modules_to_save, _HEAD]))
    base = _base_tables(stored, config)
    config.tables = {own: stored[name].float32() for name, own in base.items()}
    names = _renamed([name for name in stored if name not in base], config)
    config.modules = _modules(path, names.values(), config)
    config.target_modules = _ends(config.modules)
    if config.ensure_weight_tying and any(name.endswith(_BASE_TABLES) for name in config.modules):
        raise FormatError(
            f"{path}: key ensure_weight_tying is not implemented where the embedding or the head is adapted"
        )
    tensors = {names[name]: stored[name].float32() for name in sorted(names)}
    _check_ranks(path, config, tensors, FormatError)
    own = os.path.join(folder, _OWN)
    config.extra = read_json(own, _SMALL) if os.path.exists(own) else {}
    return config, tensors


def adapter_config_json(config: AdapterConfig) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.17 and later read it: the keys that all of them know."""
    return {
        "alpha_pattern": dict(config.alpha_pattern),
        "auto_mapping": None,
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": config.bias,
        "fan_in_fan_out": config.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": list(config.modules_to_save) or None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": dict(config.rank_pattern),
        "revision": None,
        "target_modules": list(config.target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }


def write_adapter(folder: str | os.PathLike[str], config: AdapterConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes an adapter as PEFT does: float32 `tensors` by PEFT name, as read_adapter gives them.

    Each file appears whole or not at all (temporary sibling, sync, rename). JpoError where names, ranks and
    target_modules do not belong together, before anything is written.
    """
    from safetensors.numpy import save_file

    folder = os.fspath(folder)
    adapted = _modules(folder, tensors, config)
    ends = {name for name in config.target_modules for module in adapted if f".{module}".endswith(f".{name}")}
    strange = [module for module in adapted if not any(f".{module}".endswith(f".{name}") for name in ends)]
    if strange or ends != set(config.target_modules):
        raise JpoError(f"{folder}: target_modules {config.target_modules} are not those of the tensors")
    for name, value in tensors.items():
        if value.dtype != np.float32:
            raise JpoError(f"{folder}: tensor {name}: expected float32, got {value.dtype}")
    _check_ranks(folder, config, tensors, JpoError)
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
