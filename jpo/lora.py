"""Which modules an adapter adapts, with which rank and scaling: PEFT's rules for names, over a model's modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jpo.errors import JpoError
from jpo.formats.peft import pattern_value
from jpo.formats.tensors import MODULES, Module

LORA_OPTIONS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")


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

    @property
    def scaling(self) -> float:
        """Factor on B A, where no pattern says otherwise."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    def options(self) -> dict[str, Any]:
        """Those of the settings that are options of a training run."""
        return {name: getattr(self, name) for name in LORA_OPTIONS}

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
    return {MODULES[index].rsplit(".", 1)[-1] for index, _ in module.parts}


def _named(name: str, module: Module) -> bool:
    return module.name == name or module.name.endswith(f".{name}")


def _chosen(modules: Sequence[Module], target_modules: Sequence[str] | str) -> list[Module]:
    """The modules that target_modules ("all-linear", names or ends of names) mean.

    A usual name (q_proj) also means the module that holds it under another name. JpoError where a name means nothing.
    """
    shorts = tuple(dict.fromkeys(module.short for module in modules))
    names = shorts if target_modules == "all-linear" else target_modules
    names = (names,) if isinstance(names, str) else tuple(names)
    wanted: set[str] = set()
    for name in names:
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
        unknown = sorted(layers - {module.layer for module in modules})
        if unknown:
            raise JpoError(f"layers_to_transform: the model has no layer {unknown[0]}")
        chosen = [module for module in chosen if module.layer in layers]
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
        raise JpoError("target_modules: no module is left to adapt")
    return tuple(result)


def lora_shapes(modules: Sequence[Module], settings: LoraSettings) -> dict[str, tuple[int, ...]]:
    """PEFT's tensor names -> shapes, A (r, inputs) and B (outputs, r) of each adapted module."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in adapted_modules(modules, settings.target_modules):
        rank = settings.rank_of(module.name)
        shapes[f"base_model.model.{module.name}.lora_A.weight"] = (rank, module.inputs)
        shapes[f"base_model.model.{module.name}.lora_B.weight"] = (module.outputs, rank)
    return shapes


def lora_places(
    modules: Sequence[Module], settings: LoraSettings, offsets: Mapping[str, int]
) -> list[tuple[int, int, int, float, float, int, int]]:
    """What the engine's set_lora takes: (layer, module, r, scale, dropout, offset of A, offset of B's own rows).

    The engine's modules inside a fused one share A, and each has its rows of B.
    """
    places: list[Any] = []
    for module in adapted_modules(modules, settings.target_modules):
        rank, scaling = settings.rank_of(module.name), settings.scaling_of(module.name)
        stem = f"base_model.model.{module.name}"
        a, b = offsets[f"{stem}.lora_A.weight"], offsets[f"{stem}.lora_B.weight"]
        for index, row in module.parts:
            places.append((module.layer, index, rank, scaling, settings.lora_dropout, a, b + row * rank))
    return places
