"""Model files: Hugging Face directories, GGUF files, the built-in tiny model, PEFT adapters.

`load_checkpoint` gives named tensors as stored (memory-mapped), a normalized configuration and the tokenizer; what
computes with them is jpo.model's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from jpo.errors import JpoError
from jpo.formats.files import check_finite
from jpo.formats.installed import NAMES, installed_model
from jpo.formats.stored import BLOCKS, Checkpoint, StoredTensor
from jpo.formats.writing import write_checkpoint

__all__ = ["BLOCKS", "Checkpoint", "StoredTensor", "load_checkpoint", "write_checkpoint"]


def load_checkpoint(name_or_path: str | os.PathLike[str], *, check: bool = True) -> Checkpoint:
    """The model of that name ("smollm2-135m", "gemma3-270m", "tiny"), path (Hugging Face directory, GGUF file) or
    repository of the hub (USER/NAME, USER/NAME@REVISION, USER/NAME:FILE.gguf); a path that exists wins.

    JpoError where there is no such model; FormatError, naming file and tensor or key, where a file is malformed or,
    with `check`, where a weight is NaN or infinite (a scan at the speed of memory).
    """
    checkpoint = _load(os.fspath(name_or_path))
    if check:
        check_finite(checkpoint.source, checkpoint.tensors)
    return checkpoint


@dataclass(frozen=True)
class ModelFormat:
    """One way in which a model is stored. FORMATS lists them; the first that detects a name reads it."""

    name: str
    detects: Callable[[str], bool]
    reads: Callable[[str], Checkpoint]
    writes: str | None  # by its whole name: the function that writes it; None where nothing does


def _read_installed(name: str) -> Checkpoint:
    from jpo.formats.gguf_model import load_gguf

    return load_gguf(installed_model(name), name)


def _read_tiny(name: str) -> Checkpoint:
    from jpo.formats.tiny import load_tiny

    return load_tiny()


def _read_directory(name: str) -> Checkpoint:
    from jpo.formats.huggingface import load_directory

    return load_directory(name)


def _read_gguf(name: str) -> Checkpoint:
    from jpo.formats.gguf_model import load_gguf

    return load_gguf(name)


def _on_hub(name: str) -> bool:
    from jpo.hub.names import hub_name

    return hub_name(name) is not None


def _read_hub(name: str) -> Checkpoint:
    from jpo.hub.download import model_path
    from jpo.hub.names import hub_name

    on_hub = hub_name(name)
    assert on_hub is not None  # _on_hub said so
    return replace(_load(model_path(on_hub)), source=str(on_hub))


FORMATS = (
    ModelFormat("an installed package", NAMES.__contains__, _read_installed, None),
    ModelFormat("the built-in tiny model", "tiny".__eq__, _read_tiny, None),
    ModelFormat("a Hugging Face directory", os.path.isdir, _read_directory, "jpo.formats.write_checkpoint"),
    ModelFormat("a GGUF file", os.path.exists, _read_gguf, "jpo.export.merge"),
    ModelFormat("a repository of the hub", _on_hub, _read_hub, "jpo.hub.push.push"),
)


def _load(name: str) -> Checkpoint:
    for format in FORMATS:
        if format.detects(name):
            return format.reads(name)
    raise JpoError(
        f"model {name!r}: no such model, directory or file; expected {', '.join(map(repr, NAMES))}, 'tiny', a Hugging "
        "Face directory (config.json, *.safetensors, tokenizer.json), a GGUF file or a repository of the hub (USER/NAME)"
    )
