"""What an adapter changes: for each adapted tensor of the model, the low-rank update, folded to one product B A.

rsLoRA and alpha_pattern end here: `Change.b` holds the whole scaling. What cannot be folded is refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo.errors import JpoError
from jpo.formats.peft import AdapterConfig, read_adapter
from jpo.formats.tensors import Module, modules, tables
from jpo.lora import LoraSettings

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Change:
    """A module's low-rank update: its weight (outputs, inputs) becomes W + scaling B A."""

    module: Module
    a: np.ndarray  # (r, inputs) float32
    b: np.ndarray  # (outputs, r) float32
    scaling: float

    def rows(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows (n, inputs) of the update, float32, as peft computes them: the product, then the scaling."""
        return np.float32(self.scaling) * (self.b[rows] @ self.a)

    def columns(self, columns: slice) -> np.ndarray:
        """The same of the transposed update (inputs, outputs): rows are inputs."""
        return np.float32(self.scaling) * (self.b @ self.a[:, columns]).T


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter that fits a model."""

    folder: str
    config: AdapterConfig
    changes: Mapping[str, Change]  # by the name of the weight's tensor in the model's file

    @property
    def settings(self) -> dict[str, Any]:
        """jpo's own settings, {} where another program wrote the adapter."""
        return self.config.extra


def _settings(config: AdapterConfig) -> LoraSettings:
    return LoraSettings(
        config.r,
        config.lora_alpha,
        config.lora_dropout,
        config.target_modules,
        config.use_rslora,
        config.rank_pattern,
        config.alpha_pattern,
    )


def _change(where: str, module: Module, a: np.ndarray, b: np.ndarray, scaling: float) -> Change:
    for name, got, wanted in (("lora_A", a.shape[1], module.inputs), ("lora_B", b.shape[0], module.outputs)):
        if got != wanted:
            raise JpoError(
                f"{where}: tensor {_PREFIX}{module.name}.{name}.weight: the model's module has {wanted}, the adapter "
                f"{got}; give the base model that it was trained for"
            )
    return Change(module, a, b, scaling)


def read_changes(folder: str | os.PathLike[str], config: Mapping[str, Any], source: str) -> Adapter:
    """The adapter of a directory, for a model of this normalized configuration.

    FormatError for a malformed adapter; JpoError where it does not fit the model, or holds what cannot be merged.
    """
    where = os.fspath(folder)
    adapter, tensors = read_adapter(where)
    settings = _settings(adapter)
    own = {module.name: module for module in modules(config)}
    others = {module.name for module in tables(config)}
    changes: dict[str, Change] = {}
    for name in tensors:
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.*)\.lora_([AB])\.weight", name)
        if match is None or match[1] in others:
            raise JpoError(f"{where}: tensor {name} cannot be merged or exported: only LoRA's matrices of layers can")
        module = own.get(match[1])
        if module is None:
            raise JpoError(
                f"{where}: the model {source} has no module {match[1]}; give the base model that the adapter was "
                "trained for"
            )
        if match[2] == "A":
            a, b = tensors[name], tensors[name.replace(".lora_A.", ".lora_B.")]
            changes[f"{match[1]}.weight"] = _change(where, module, a, b, settings.scaling_of(match[1]))
    return Adapter(where, adapter, changes)
