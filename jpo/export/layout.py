"""From a model's tensors to those of a file: names, order of rows, and which adapter's updates fall into them.

Three ways: Hugging Face's own layout; GGUF's layout of a Hugging Face model; a GGUF file's own layout. Knows names and
orders (jpo.formats.families); never types or bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jpo import _core
from jpo.errors import JpoError
from jpo.export.changes import Change
from jpo.export.rows import Rows, Update
from jpo.formats.families import Family, family_of
from jpo.formats.gguf import GGUFFile
from jpo.formats.gguf_model import FACTORS
from jpo.formats.stored import Checkpoint
from jpo.formats.tensors import places, tensor_shapes, transposed_names

Changes = Mapping[str, Change]  # by the name of the weight's tensor
# families that llama.cpp reads under another's name (their block is Llama's)
_WRITTEN_AS = {"mistral": "llama", "ministral": "llama"}
_NEED_A_HEAD = ("olmo2", "stablelm")  # architectures whose output.weight llama.cpp does not take from the embedding
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def architecture(config: Mapping[str, Any]) -> str:
    """general.architecture of the model's GGUF files; JpoError where llama.cpp has none."""
    family = family_of(config["model_type"])
    name = family.gguf or _WRITTEN_AS.get(family.model_type)
    if not name:
        raise JpoError(f"model_type {family.model_type!r} has no GGUF layout; merge with --format hf instead")
    return name


def repeats_head(config: Mapping[str, Any]) -> bool:
    """Whether GGUF files of this tied model hold the embedding a second time, as the head: llama.cpp asks for it."""
    return bool(config["tie_word_embeddings"]) and architecture(config) in _NEED_A_HEAD


def row_order(config: Mapping[str, Any], name: str) -> np.ndarray | None:
    """The order in which GGUF has the rows of this tensor (its Hugging Face name); None: the same.

    Pairs: within a head, Hugging Face's row (half j, pair i) stands at (pair i, half j).
    """
    family = family_of(config["model_type"])
    module = name.rpartition(".")[0].rpartition(".")[2]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(module)
    if family.gguf_rows != "pairs" or heads is None:
        return None
    half = config["head_dim"] // 2
    return np.arange(heads * 2 * half).reshape(heads, 2, half).swapaxes(1, 2).reshape(-1)


def _adds_one(family: Family, name: str) -> bool:
    return family.gguf_adds_one and name.endswith("norm.weight")


def gguf_names(config: Mapping[str, Any]) -> dict[str, str]:
    """GGUF's name of every tensor of the model, by the Hugging Face name, in the order of the model's files."""
    family, usual = family_of(config["model_type"]), {engine: gguf for engine, gguf, *_ in _core.TENSORS}
    names: dict[str, str] = {}
    for place in places(config):
        engine, _, kind = place.engine.rpartition(".")
        file, block = place.name.rpartition(".")[0], ""
        if engine.startswith("model.layers."):
            number, engine = engine.split(".", 3)[2:]
            file, block = file.removeprefix(f"{family.layers}.{number}."), f"blk.{number}."
        own = family.gguf_names.get(file) or family.gguf_names.get(engine, usual[engine])
        names[place.name] = f"{block}{own}.{kind}"
    return names


def _update(changes: Changes, name: str, order: np.ndarray | None, first: int = 0) -> list[Update]:
    change = changes.get(name)
    if change is None:
        return []
    return [Update(change, first, np.arange(change.module.outputs) if order is None else order)]


def hugging_face_rows(checkpoint: Checkpoint, changes: Changes) -> Iterator[tuple[str, Rows]]:
    """(name, rows) of every tensor in the model's own layout."""
    turned = transposed_names(checkpoint.config)
    for name in tensor_shapes(checkpoint.config):
        updates = _update(changes, name, None)
        if name in turned and updates:
            change = updates[0].change
            updates = [Update(change, 0, np.arange(change.module.inputs), transposed=True)]
        yield name, Rows(checkpoint.tensors[name], updates=updates)


def gguf_rows(checkpoint: Checkpoint, changes: Changes) -> Iterator[tuple[str, Rows]]:
    """(GGUF name, rows) of every tensor of a Hugging Face model."""
    family, turned = family_of(checkpoint.config["model_type"]), transposed_names(checkpoint.config)
    for name, gguf in gguf_names(checkpoint.config).items():
        order = row_order(checkpoint.config, name)
        tensor, updates = checkpoint.tensors[name], _update(changes, name, order)
        added = float(_adds_one(family, name))
        yield gguf, Rows(tensor, order, name in turned, added, updates)
    if repeats_head(checkpoint.config):
        table = f"{family.names.get('model.embed_tokens', 'model.embed_tokens')}.weight"
        yield "output.weight", Rows(checkpoint.tensors[table])


def gguf_file_rows(file: GGUFFile, config: Mapping[str, Any], changes: Changes) -> Iterator[tuple[str, Rows]]:
    """(GGUF name, rows) of every tensor of a GGUF file, which keeps its layout; the configuration is the one read from
    it."""
    parts = gguf_parts(config)
    for name, tensor in file.tensors.items():
        updates = [
            update for part, first in parts(name) for update in _update(changes, part, row_order(config, part), first)
        ]
        yield name, Rows(tensor, updates=updates)


def gguf_parts(config: Mapping[str, Any]) -> Callable[[str], list[tuple[str, int]]]:
    """A function of a GGUF tensor's name -> [(Hugging Face name, first row)] of what stands in its rows."""
    family = family_of(config["model_type"])
    shapes = tensor_shapes(config)
    known = {gguf: [(name, 0)] for name, gguf in gguf_names(config).items()}

    def parts(name: str) -> list[tuple[str, int]]:
        pieces = name.split(".")
        if name in known or name in FACTORS or len(pieces) != 4 or pieces[2] != "attn_qkv":
            return known.get(name, [])
        found, first = [], 0  # q, k and v in one tensor, of a family that stores them apart
        for part in _QKV:
            own = f"{family.layers}.{pieces[1]}.{part}.{pieces[3]}"
            if own not in shapes:
                return []
            found.append((own, first))
            first += shapes[own][0]
        return found

    return parts
