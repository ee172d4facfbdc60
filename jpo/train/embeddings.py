"""Vectors of instructions for the loss rpo: out of a file, a function, or (elsewhere) the model's mean hidden state.

Knows instructions and vectors; never tokens or models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jpo.data.readers import read_records
from jpo.data.records import instruction_of
from jpo.data.texts import Text, plain, text_key
from jpo.errors import DataError, JpoError
from jpo.functions import function_named

Embed = Callable[[list[Any]], Any]


class Embeddings:
    """Unit vectors (E,) float64 of instructions.

    source: a file of {instruction, embedding} records (JSON Lines, JSON, Parquet), "module:function", or a function
    that takes N instructions (texts, or lists of messages) and gives an array (N, E)."""

    def __init__(self, source: str | Embed):
        self._known: dict[str, np.ndarray[Any, Any]] = {}
        self._embed: Embed | None = None
        self.name = source if isinstance(source, str) else getattr(source, "__name__", "a function")
        if not isinstance(source, str):
            self._embed = source
        elif ":" in os.path.basename(source) and not os.path.exists(source):
            self._embed = function_named(source, "rpo_embeddings:", "a file or module:function")
        else:
            for record in read_records(source):
                if "embedding" not in record:
                    raise DataError(
                        f"{record.where}: the key embedding is missing; expected {{instruction, embedding}}"
                    )
                text = instruction_of(record, record.where)
                self._known[text_key(text)] = _unit(record["embedding"], f"{record.where}: embedding")
            self._check_sizes()

    def unit_vectors(self, texts: Sequence[Text]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N, E) of N instructions; JpoError names one that the source does not know."""
        missing = list(dict.fromkeys(text_key(text) for text in texts if text_key(text) not in self._known))
        if missing and self._embed is None:
            raise JpoError(f"rpo_embeddings: {self.name} holds no vector of the instruction {missing[0][:80]!r}")
        if missing and self._embed is not None:
            by_key = {text_key(text): text for text in texts}
            given = np.asarray(self._embed([plain(by_key[key]) for key in missing]), dtype=np.float64)
            if given.ndim != 2 or len(given) != len(missing):
                raise JpoError(
                    f"rpo_embeddings: {self.name}: expected an array ({len(missing)}, E), got shape {given.shape}"
                )
            for key, vector in zip(missing, given, strict=True):
                self._known[key] = _unit(vector, f"rpo_embeddings: {self.name}")
            self._check_sizes()
        return np.stack([self._known[text_key(text)] for text in texts])

    def _check_sizes(self) -> None:
        sizes = sorted({len(vector) for vector in self._known.values()})
        if len(sizes) > 1:
            raise JpoError(f"rpo_embeddings: {self.name}: vectors of {sizes[0]} and of {sizes[-1]} numbers")


def _unit(value: Any, where: str) -> np.ndarray[Any, Any]:
    try:
        vector = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected a list of numbers") from None
    norm = float(np.linalg.norm(vector)) if vector.ndim == 1 and vector.size else 0.0
    if not (np.isfinite(norm) and norm > 0):
        raise DataError(f"{where}: expected a list of finite numbers, not all 0")
    return np.asarray(vector / norm)
