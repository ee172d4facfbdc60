"""The base model of an export: its tensors, and the file or directory that they came from."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace

from jpo.formats import load_checkpoint
from jpo.formats.gguf import GGUFFile, read_gguf
from jpo.formats.installed import NAMES, installed_file
from jpo.formats.stored import Checkpoint
from jpo.hub.names import hub_name


@dataclass(frozen=True)
class Base:
    """A model as it is stored. Values are checked when they are written, not here."""

    checkpoint: Checkpoint
    file: GGUFFile | None  # of a GGUF base
    folder: str | None  # of a Hugging Face directory

    def release(self) -> None:
        """Lets go of the pages that reading mapped: memory stays that of the tensor in hand."""
        for found in self.checkpoint.maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                found.madvise(mmap.MADV_DONTNEED)


def open_base(model: str | os.PathLike[str]) -> Base:
    """The model of that name, directory, GGUF file or repository of the hub."""
    name = os.fspath(model)
    on_hub = None if os.path.exists(name) else hub_name(name)
    if on_hub is not None:
        from jpo.hub.download import model_path

        found = open_base(model_path(on_hub))
        return replace(found, checkpoint=replace(found.checkpoint, source=str(on_hub)))
    if os.path.isdir(name):
        return Base(load_checkpoint(name, check=False), None, name)
    if name in NAMES or os.path.isfile(name):
        file = read_gguf(installed_file(name) if name in NAMES else name)
        return Base(load_checkpoint(name, check=False), file, None)
    return Base(load_checkpoint(name, check=False), None, None)
