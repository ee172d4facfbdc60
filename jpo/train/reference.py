"""Log-likelihoods of the reference model, kept on disk and reused (--ref-logps FILE).

Each is known by the digest of what it is of: the scope and the token ids, which template, lengths and truncation made.
One file belongs to one model (weights, storage and compute type); another one's, or a damaged one, is refused by name.
Knows digests and files; never texts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jpo.errors import FormatError

_FORMAT = "jpo reference log-likelihoods 1"
_DIGEST = 32  # bytes of a SHA-256


def sequence_digest(scope: str, prompt: Any, response: Any) -> bytes:
    """SHA-256 of a scope and the int32 token ids (array or ndarray) of prompt and response."""
    sha = hashlib.sha256(f"{scope} {len(prompt)} ".encode())
    sha.update(prompt.tobytes())
    sha.update(response.tobytes())
    return sha.digest()


class ReferenceLogps:
    """Digest -> log-likelihood, in memory and, with a path, in a file that `save` writes whole."""

    def __init__(self, path: str | None = None, model: str = ""):
        self.path, self.model = path, model
        self._values: dict[bytes, float] = {}
        if path is not None and os.path.exists(path):
            self._load(path)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._values

    def add(self, digests: Sequence[bytes], values: np.ndarray[Any, Any]) -> None:
        """Remember values (n,) under digests (n)."""
        self._values.update(zip(digests, map(float, values), strict=True))

    def values(self) -> dict[bytes, float]:
        """All that is known, by digest."""
        return dict(self._values)

    def merge(self, values: dict[bytes, float]) -> None:
        """Remember what another rank's file holds."""
        self._values.update(values)

    def get(self, digests: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """(n,) float64, or None where one of them is not known."""
        if not all(digest in self._values for digest in digests):
            return None
        return np.array([self._values[digest] for digest in digests], dtype=np.float64)

    def save(self) -> None:
        """Write the file, if there is one: aside, synced, renamed."""
        if self.path is None:
            return
        from safetensors.numpy import save_file

        from jpo.disk import write_atomic

        keys = np.frombuffer(b"".join(self._values), dtype=np.uint8).reshape(-1, _DIGEST)
        values = np.fromiter(self._values.values(), dtype=np.float64, count=len(self._values))
        told = {"format": _FORMAT, "model": self.model, "sha256": _sum(keys, values)}
        write_atomic(self.path, lambda part: save_file({"keys": keys, "values": values}, part, metadata=told))

    def _load(self, path: str) -> None:
        from safetensors import SafetensorError, safe_open

        remedy = "remove it, or give --ref-logps another name"
        try:
            with safe_open(path, framework="np") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, ValueError) as error:
            raise FormatError(f"{path}: no file of reference log-likelihoods, or damaged ({error}); {remedy}") from None
        if told.get("format") != _FORMAT:
            raise FormatError(f"{path}: holds no reference log-likelihoods of jpo; {remedy}")
        nothing = np.zeros((0, 0))
        keys, values = tensors.get("keys", nothing), tensors.get("values", nothing)
        whole = {"keys", "values"} <= tensors.keys() and keys.shape == (*values.shape, _DIGEST)
        if not whole or told.get("sha256") != _sum(keys, values) or not np.isfinite(values).all():
            raise FormatError(f"{path}: damaged: its contents do not match their digest; {remedy}")
        if told.get("model") != self.model:
            raise FormatError(f"{path}: holds log-likelihoods of another model, storage or compute type; {remedy}")
        self._values = {key.tobytes(): float(value) for key, value in zip(keys, values, strict=True)}


def _sum(keys: Any, values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(keys).tobytes() + np.ascontiguousarray(values).tobytes()).hexdigest()
