"""Which modules an adapter adapts, with which rank and scaling, and what is trained beside.

PEFT's rules for names, over a model's modules and tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np

from jpo.errors import JpoError
from jpo.formats.peft import PREFIX, Bias, pattern_value, saved_module, whole_name
from jpo.formats.tensors import (
    MODULES,
    Module,
    adaptable,
    engine_offsets,
    head_name,
    modules,
    trainable_shapes,
    transposed_names,
)
from jpo.trainable import Trainable


@dataclass(frozen=True)
class LoraSettings:
    """The adapter's shape, in PEFT's names."""

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: tuple[str, ...]  # ends of the modules' names, or whole names
    use_rslora: bool
    rank_pattern: Mapping[str, int] = field(default_factory=dict)  # end of a module's name -> its rank
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    # not shown: a model's digest (evaluate.sampling) holds what is shown and all trained values, which these change
    use_dora: bool = field(default=False, repr=False)
    bias: Bias = field(default="none", repr=False)
    modules_to_save: tuple[str, ...] = field(default=(), repr=False)

    @property
    def scaling(self) -> float:
        """Factor on B A, where no pattern says otherwise."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    def options(self) -> dict[str, Any]:
        """The settings as options of a training run; target_modules already says which layers and what is excluded."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        return own | {"exclude_modules": None, "layers_to_transform": None}

    def rank_of(self, module: str) -> int:
        """The rank of the named module's adapter."""
        return int(pattern_value(self.rank_pattern, module, self.r))

    def scaling_of(self, module: str) -> float:
        """Factor on B A of the named module."""
        rank = self.rank_of(module)
        return float(pattern_value(self.alpha_pattern, module, self.lora_alpha)) / (
            rank**0.5 if self.use_rslora else rank
        )


def _aliases(module: Module) -> set[str]:
    """The usual names of what is fused in the module: q_proj where q, k and v stand in one matrix."""
    if module.layer < 0:  # the embedding and the head hold one matrix each
        return set()
    return {MODULES[index].rsplit(".", 1)[-1] for index, _ in module.parts}


def _named(name: str, module: Module) -> bool:
    return module.name == name or module.name.endswith(f".{name}")


def _chosen(modules: Sequence[Module], target_modules: Sequence[str] | str) -> list[Module]:
    """The modules that target_modules ("all-linear", names or ends of names, also in one string with commas) mean.

    A usual name (q_proj) also means the module that holds it under another name. JpoError where a name means nothing.
    """
    shorts = tuple(dict.fromkeys(module.short for module in modules))
    linear = tuple(dict.fromkeys(module.short for module in modules if module.layer >= 0))
    names = linear if target_modules == "all-linear" else target_modules
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    wanted: set[str] = set()
    for name in names if isinstance(names, Iterable) else ():
        own = {module.name for module in modules if _named(name, module)}
        found = own or {module.name for module in modules if name in _aliases(module)}
        if not found:
            break
        wanted |= found
    else:
        if wanted:
            return [module for module in modules if module.name in wanted]
    raise JpoError(f"target_modules: expected 'all-linear' or some of {', '.join(shorts)}, got {target_modules!r}")


def adapted_modules(modules: Sequence[Module], target_modules: Sequence[str]) -> list[Module]:
    """The modules that resolved target_modules mean, in order."""
    return [module for module in modules if any(_named(name, module) for name in target_modules)]


def select_modules(
    modules: Sequence[Module],
    target_modules: Sequence[str] | str,
    exclude_modules: Sequence[str] | str | None = None,
    layers_to_transform: Sequence[int] | int | None = None,
    modules_to_save: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names for LoraSettings.target_modules: ends of names, or whole names where only some of their modules are
    meant."""
    chosen = _chosen(modules, target_modules)
    if exclude_modules:
        if isinstance(exclude_modules, str):
            chosen = [module for module in chosen if not re.fullmatch(exclude_modules, module.name)]
        else:
            chosen = [module for module in chosen if not any(_named(name, module) for name in exclude_modules)]
    if layers_to_transform is not None:
        layers = {layers_to_transform} if isinstance(layers_to_transform, int) else set(layers_to_transform)
        last = max(module.layer for module in modules)
        unknown = sorted(layers - set(range(last + 1)))
        if unknown:
            raise JpoError(f"layers_to_transform: the model has no layer {unknown[0]}; it has 0 to {last}")
        chosen = [module for module in chosen if module.layer in layers]
    chosen = [module for module in chosen if not saved_module(module.name, modules_to_save)]  # these are trained whole
    return targets_of(modules, [module.name for module in chosen])


def targets_of(modules: Sequence[Module], names: Sequence[str]) -> tuple[str, ...]:
    """The shortest target_modules that mean exactly the named modules."""
    wanted = set(names)
    result: list[str] = []
    for module in modules:
        if module.name not in wanted or any(_named(name, module) for name in result):
            continue
        ends = [module.short, module.name.split(f".{module.layer}.", 1)[-1], module.name]
        alone = [end for end in ends if all(other.name in wanted for other in modules if _named(end, other))]
        result.append(alone[0])
    if not result:
        raise JpoError(
            "target_modules: no module is left to adapt; exclude_modules, layers_to_transform and modules_to_save take "
            "some out"
        )
    return tuple(result)


@dataclass(frozen=True)
class Layout:
    """What an adapter trains, by PEFT's names, and which of the model's tensors it trains whole."""

    shapes: dict[str, tuple[int, ...]]  # A, B and magnitude of each adapted module, then the tensors trained whole
    whole: dict[str, str]  # PEFT's name -> the model file's
    transposed: frozenset[str]  # of these, those that stand as (inputs, outputs)
    adapted: tuple[str, ...]  # names of the adapted modules


def lora_layout(config: Mapping[str, Any], settings: LoraSettings) -> Layout:
    """The layout of an adapter with these settings on a model of this configuration."""
    shapes: dict[str, tuple[int, ...]] = {}
    adapted = adapted_modules(adaptable(config), settings.target_modules)
    for module in adapted:
        if settings.use_dora and module.layer < 0:
            raise JpoError(f"target_modules: use_dora is not implemented for {module.short}")
        rank, (a, b) = settings.rank_of(module.name), module.matrices
        shapes[f"{PREFIX}{module.name}.{a}"] = (rank, module.inputs)
        shapes[f"{PREFIX}{module.name}.{b}"] = (module.outputs, rank)
        if settings.use_dora:
            shapes[f"{PREFIX}{module.name}.lora_magnitude_vector"] = (module.outputs,)
    whole, turned = {}, transposed_names(config)
    names = {module.name for module in adapted}
    for name, shape in trainable_shapes(config).items():
        stem, part = name.rsplit(".", 1)
        bias = part == "bias" and (settings.bias == "all" or (settings.bias == "lora_only" and stem in names))
        if bias or saved_module(stem, settings.modules_to_save):
            whole[whole_name(name, names)] = name
            shapes[whole_name(name, names)] = shape
    transposed = frozenset(key for key, name in whole.items() if name in turned)
    return Layout(shapes, whole, transposed, tuple(module.name for module in adapted))


def lora_places(
    config: Mapping[str, Any], settings: LoraSettings, offsets: Mapping[str, int]
) -> list[tuple[int, int, int, float, float, int, int, int]]:
    """What the engine's set_lora takes: (layer, module, r, scale, dropout, offset of A, of B's own rows, of their
    magnitudes or -1).

    The engine's modules inside a fused one share A, and each has its rows of B. The embedding and the head stand in
    layer 0 and see no dropout.
    """
    places: list[Any] = []
    for module in adapted_modules(adaptable(config), settings.target_modules):
        rank, scaling = settings.rank_of(module.name), settings.scaling_of(module.name)
        stem = f"{PREFIX}{module.name}"
        a, b = (offsets[f"{stem}.{end}"] for end in module.matrices)
        dropout = settings.lora_dropout if module.layer >= 0 else 0.0
        m = offsets.get(f"{stem}.lora_magnitude_vector")
        for index, row in module.parts:
            own = -1 if m is None else m + row
            places.append((max(module.layer, 0), index, rank, scaling, dropout, a, b + row * rank, own))
    return places


def whole_offsets(config: Mapping[str, Any], layout: Layout, offsets: Mapping[str, int]) -> dict[str, int]:
    """The engine's name -> place in the flat vector, of the tensors that are trained whole."""
    return engine_offsets(config, {name: offsets[key] for key, name in layout.whole.items()})


def merge_module(weight: np.ndarray[Any, Any], module: Module, settings: LoraSettings, trainable: Trainable) -> None:
    """weight (outputs, inputs) becomes the adapted one, in place."""
    stem = f"{PREFIX}{module.name}"
    a, b = (trainable.view(f"{stem}.{end}") for end in module.matrices)
    weight += np.float32(settings.scaling_of(module.name)) * (b @ a)
    if settings.use_dora:
        norms = np.sqrt(np.einsum("ij,ij->i", weight, weight, dtype=np.float64))
        magnitudes = trainable.view(f"{stem}.lora_magnitude_vector")
        factors = np.divide(magnitudes, norms, out=np.zeros(len(norms)), where=norms > 0)
        weight *= factors.astype(np.float32)[:, None]


def check_tables(
    where: str,
    config: Mapping[str, Any],
    tables: Mapping[str, np.ndarray[Any, Any]],
    stored: Callable[[str], np.ndarray[Any, Any]],
) -> None:
    """PEFT writes the base's embedding and head beside their adapters: they must be this model's own, which `stored`
    gives by name; `where` precedes the name in the error. Names that the model lacks are left to its list of modules.
    """
    known = trainable_shapes(config)
    for name, values in tables.items():
        own = stored(name) if name in known else values
        if own.shape != values.shape or np.abs(own - values).max() > np.abs(own).max() / 64:
            raise JpoError(
                f"{where}{name}: the adapter holds an embedding or head that is not the model's own (another vocabulary, "
                "or trained beside); merge it into the model that it was trained for, where it was trained"
            )


def lora_settings(
    config: Mapping[str, Any],
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: Sequence[str] | str,
    use_rslora: bool,
    *,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    exclude_modules: Sequence[str] | str | None = None,
    layers_to_transform: Sequence[int] | int | None = None,
    use_dora: bool = False,
    bias: Bias = "none",
    modules_to_save: Sequence[str] | str | None = None,
) -> LoraSettings:
    """Settings of a fresh adapter on a model of this configuration; JpoError names the option that does not fit it."""
    if isinstance(r, bool) or not isinstance(r, Integral) or r < 1:
        raise JpoError(f"r: expected a positive integer, got {r!r}")
    for name, value in (("lora_alpha", lora_alpha), ("lora_dropout", lora_dropout)):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise JpoError(f"{name}: expected a number, got {value!r}")
    if not 0 <= lora_dropout < 1:
        raise JpoError(f"lora_dropout: expected a number from 0 to below 1, got {lora_dropout!r}")
    if bias not in get_args(Bias):
        raise JpoError(f"bias: expected one of {', '.join(get_args(Bias))}, got {bias!r}")
    saved = (modules_to_save,) if isinstance(modules_to_save, str) else tuple(modules_to_save or ())
    known = {name.rsplit(".", 1)[0] for name in trainable_shapes(config)}
    for name in saved:
        if not any(saved_module(module, (name,)) for module in known):
            shorts = dict.fromkeys(name.rsplit(".", 1)[-1] for name in sorted(known))
            raise JpoError(f"modules_to_save: expected some of {', '.join(shorts)}, got {name!r}")
    own = adaptable(config)
    targets = select_modules(own, target_modules, exclude_modules, layers_to_transform, saved)
    return LoraSettings(
        int(r),
        float(lora_alpha),
        float(lora_dropout),
        targets,
        bool(use_rslora),
        _pattern("rank_pattern", rank_pattern, int),
        _pattern("alpha_pattern", alpha_pattern, float),
        bool(use_dora),
        bias,
        saved,
    )


def _pattern(name: str, pattern: Mapping[str, Any] | None, kind: type) -> dict[str, Any]:
    """The pattern with its values as numbers; JpoError for what is no positive number or no regular expression."""
    if pattern is not None and not isinstance(pattern, Mapping):
        raise JpoError(f"{name}: expected a mapping of modules to numbers, got {pattern!r}")
    for key, value in (pattern or {}).items():
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        if not number or not 0 < value <= 1 << 16:
            raise JpoError(f"{name}: {key!r}: expected a number from 1 to 65536, got {value!r}")
        try:
            re.compile(key)
        except re.error as error:
            raise JpoError(f"{name}: {key!r} is no regular expression: {error}") from None
    return {key: kind(value) for key, value in (pattern or {}).items()}


@dataclass(frozen=True)
class LoraSize:
    """What an adapter takes, counted from shapes."""

    values: int  # that are trained
    ranks: int  # of the layer whose modules have most together
    magnitudes: int  # rows with magnitudes, of a layer
    head: bool  # the head is trained whole or adapted


def lora_size(config: Mapping[str, Any], settings: LoraSettings) -> LoraSize:
    """The size of an adapter with these settings."""
    layout = lora_layout(config, settings)
    ranks: dict[int, int] = {}
    rows: dict[int, int] = {}
    for module in adapted_modules(modules(config), settings.target_modules):
        ranks[module.layer] = ranks.get(module.layer, 0) + settings.rank_of(module.name) * len(module.parts)
        rows[module.layer] = rows.get(module.layer, 0) + (module.outputs if settings.use_dora else 0)
    values = sum(math.prod(shape) for shape in layout.shapes.values())
    head = head_name(config)
    trained = head in layout.whole.values() or head.removesuffix(".weight") in layout.adapted
    return LoraSize(values, max(ranks.values(), default=0), max(rows.values(), default=0), trained)
