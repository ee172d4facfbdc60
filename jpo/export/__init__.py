"""From an adapter to where people use it: merged models, llama.cpp's adapter files, Ollama's Modelfiles, model cards.

Reads and writes files tensor by tensor; never computes with the model (jpo.model). The two functions are imported when
they are first used: every trainer reads the model card's module, few runs merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jpo.export.merging import export_adapter, merge

__all__ = ["export_adapter", "merge"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from jpo.export import merging

        return getattr(merging, name)
