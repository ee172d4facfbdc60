"""The families of models: each file of this folder that names a FAMILY adds one."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from jpo.formats.families.family import Family

__all__ = ["Family", "families", "family_of"]


@functools.cache
def families() -> dict[str, Family]:
    """model_type -> family, in the order of their names."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    rows = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {row.model_type: row for row in sorted(rows, key=lambda row: row.model_type)}


def family_of(model_type: str) -> Family:
    """The family of a normalized configuration's model_type."""
    return families()[model_type]
