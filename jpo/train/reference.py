"""Log-likelihoods of the reference model, kept on disk and reused (--ref-logps FILE).

Each is known by the digest of what it is of: the scope and the token ids, which template, lengths and truncation made.
One file belongs to one model (weights, storage and compute type); another one's, or a damaged one, is refused by name.
Knows digests and files; never texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jpo.disk import aside
from jpo.errors import FormatError
from jpo.parallel.ranks import Alone

_FORMAT = "jpo reference log-likelihoods 1"
_DIGEST = 32  # bytes of a SHA-256
_SAVE_SECONDS = 30.0  # between writes of the file while it is computed


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
        """Remember values (n,) under digests (n); what is known stays as it is: a sequence of several passes has the
        value of the first, whoever computed the others."""
        for digest, value in zip(digests, map(float, values), strict=True):
            self._values.setdefault(digest, value)

    def values(self) -> dict[bytes, float]:
        """All that is known, by digest."""
        return dict(self._values)

    def merge(self, values: dict[bytes, float]) -> None:
        """Remember what another file holds; what is known stays."""
        for digest, value in values.items():
            self._values.setdefault(digest, value)

    def get(self, digests: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """(n,) float64, or None where one of them is not known."""
        if not all(digest in self._values for digest in digests):
            return None
        return np.array([self._values[digest] for digest in digests], dtype=np.float64)

    def save(self) -> None:
        """Write the file, if there is one: aside, synced, renamed."""
        if self.path is not None:
            self.save_as(self.path)

    def save_as(self, path: str) -> None:
        """Write `path`."""
        from safetensors.numpy import save

        from jpo.disk import write_atomic

        keys = np.frombuffer(b"".join(self._values), dtype=np.uint8).reshape(-1, _DIGEST)
        values = np.fromiter(self._values.values(), dtype=np.float64, count=len(self._values))
        told = {"format": _FORMAT, "model": self.model, "sha256": _sum(keys, values)}
        stored = _ordered(save({"keys": keys, "values": values}, metadata=told))

        def write(part: str) -> None:
            with open(part, "wb") as file:
                file.write(stored)

        write_atomic(path, write)

    def _load(self, path: str) -> None:
        from safetensors import SafetensorError, safe_open

        remedy = "remove it, or give --ref-logps another name"
        try:
            with safe_open(path, framework="np") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # no mapping
        except (OSError, SafetensorError, ValueError) as error:
            raise FormatError(f"{path}: no file of reference log-likelihoods, or damaged ({error}); {remedy}") from None
        if told.get("format") != _FORMAT:
            raise FormatError(f"{path}: holds no reference log-likelihoods of jpo; {remedy}")
        nothing = np.zeros((0, 0))
        keys, values = tensors.get("keys", nothing), tensors.get("values", nothing)
        whole = {"keys", "values"} <= tensors.keys() and keys.shape == (*values.shape, _DIGEST)
        if not whole or told.get("sha256") != _sum(keys, values) or not np.isfinite(values).all():
            raise FormatError(f"{path}: damaged: its contents do not match their digest; {remedy}")
        if self.model not in ("", told.get("model")):
            raise FormatError(f"{path}: holds log-likelihoods of another model, storage or compute type; {remedy}")
        self.model = str(told.get("model"))
        self._values = {key.tobytes(): float(value) for key, value in zip(keys, values, strict=True)}


Computed = tuple[list[bytes], np.ndarray[Any, Any]]  # digests and values of a micro-batch


def fill(logps: ReferenceLogps, batches: Sequence[Any], compute: Callable[[Any], Computed], ranks: Any) -> None:
    """Compute micro-batches, over ranks one each in turn, into `logps`, whose file is written now and then, and at the
    end."""
    saved = time.monotonic()
    for first in range(0, len(batches), ranks.size):
        own = batches[first : first + ranks.size][ranks.rank : ranks.rank + 1]
        for found in ranks.allgather([compute(batch) for batch in own]):
            for digests, values in found:
                logps.add(digests, values)
        if time.monotonic() - saved > _SAVE_SECONDS:
            logps.save()
            saved = time.monotonic()
    if batches:
        logps.save()


def fill_file(
    path: str,
    model: str,
    batches: Sequence[Any],
    digests: Callable[[Any], list[bytes]],
    compute: Callable[[Any], Computed],
) -> None:
    """The file `path` of these micro-batches alone, written aside; what an interrupted run left of it is not computed
    again."""
    with aside(path) as part:
        if not os.path.getsize(part):
            ReferenceLogps(None, model).save_as(part)
        logps = ReferenceLogps(part, model)
        fill(logps, [batch for batch in batches if not all(d in logps for d in digests(batch))], compute, Alone())


def _ordered(stored: bytes) -> bytes:
    """The bytes of a safetensors file with its metadata sorted: the library writes them in any order, and equal
    contents are to be equal files."""
    size = int.from_bytes(stored[:8], "little")
    header = json.loads(stored[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + stored[8 + size :]


def holds_logps(path: str) -> bool:
    """Whether the file is safetensors, by its first bytes, and so not one of lines."""
    with open(path, "rb") as file:
        return file.read(10)[8:] == b'{"'


def join_logps(paths: Sequence[str], output: str) -> None:
    """The log-likelihoods of some files (of one model), in their order, written into `output` after what that holds.
    FormatError where they are of different models."""
    whole = ReferenceLogps(output)
    for path in paths:
        part = ReferenceLogps(path, whole.model)
        whole.model = part.model
        whole.merge(part.values())
    whole.save()


def _sum(keys: Any, values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(keys).tobytes() + np.ascontiguousarray(values).tobytes()).hexdigest()
