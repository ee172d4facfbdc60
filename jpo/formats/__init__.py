"""Model files: Hugging Face directories, GGUF files, the built-in tiny model, PEFT adapters.

`load_checkpoint` gives named tensors as stored (memory-mapped), a normalized configuration and the tokenizer; what
computes with them is jpo.model's business.
"""

from __future__ import annotations

import os
from dataclasses import replace

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


def _load(name: str) -> Checkpoint:
    from jpo.formats.gguf_model import load_gguf
    from jpo.formats.huggingface import load_directory
    from jpo.formats.tiny import load_tiny
    from jpo.hub.names import hub_name

    if name in NAMES:
        return load_gguf(installed_model(name), name)
    if name == "tiny":
        return load_tiny()
    if os.path.isdir(name):
        return load_directory(name)
    if os.path.exists(name):
        return load_gguf(name)
    on_hub = hub_name(name)
    if on_hub is not None:
        from jpo.hub.download import model_path

        return replace(_load(model_path(on_hub)), source=str(on_hub))
    raise JpoError(
        f"model {name!r}: no such model, directory or file; expected {', '.join(map(repr, NAMES))}, 'tiny', a Hugging Face directory "
        "(config.json, *.safetensors, tokenizer.json), a GGUF file or a repository of the hub (USER/NAME)"
    )
