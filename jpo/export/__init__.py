"""From an adapter to where people use it: merged models, llama.cpp's adapter files, Ollama's Modelfiles, model cards.

Reads and writes files tensor by tensor; never computes with the model (jpo.model).
"""

from __future__ import annotations

from jpo.export.merging import export_adapter, merge

__all__ = ["export_adapter", "merge"]
