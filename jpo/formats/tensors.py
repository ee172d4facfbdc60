"""Which tensors a model has, by whose names: the engine's list (csrc/model/tensors.h) and the family's spelling of it.

A file may fuse modules (their rows stand one above the other) or turn them (inputs, outputs); a `Place` says where each
of the engine's tensors stands. Knows names and shapes, never values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo import _core
from jpo.errors import FormatError
from jpo.formats.families import Family, family_of
from jpo.formats.stored import StoredTensor

MODULES: tuple[str, ...] = tuple(name for name, _, kind, per_layer, *_ in _core.TENSORS if kind == "linear")


@dataclass(frozen=True)
class Place:
    """One tensor of the engine (rows, columns; vectors: rows alone) inside one of the file's."""

    engine: str
    name: str  # in the file
    row: int  # of the file's tensor as the engine sees it: (outputs, inputs)
    shape: tuple[int, ...]
    transposed: bool = False  # the file holds (inputs, outputs)


@dataclass(frozen=True)
class Module:
    """A linear module of a file, as adapters name it, and the engine's modules in its rows."""

    name: str  # "model.layers.0.self_attn.qkv_proj"
    layer: int
    parts: tuple[tuple[int, int], ...]  # (index in MODULES, first row)
    outputs: int
    inputs: int
    transposed: bool
    embedding: bool = False  # a table: its A (r, inputs) has a column for each token

    @property
    def short(self) -> str:
        """The last part of the name, which adapters are aimed at."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def matrices(self) -> tuple[str, str]:
        """The ends of A's and B's names in PEFT's files."""
        return ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A.weight", "lora_B.weight")


def layer_tensors(config: Mapping[str, Any]) -> int:
    """Weights (biases not counted) of one layer: the least that a file must hold for each."""
    family = family_of(config["model_type"])
    try:
        rows = _core.tensors(dict(config))
    except ValueError as error:  # a value that is none as float32: rms_norm_eps = 1e-320
        raise FormatError(f"config.json: {error}") from None
    names = [name for name, _, _, per_layer, *_ in rows if per_layer]
    inside = {part: fused for fused, parts in family.fused.items() for part in parts}
    return len({inside.get(name, name) for name in names})


def _places_of(family: Family, rows: list[Any], stem: str, layer: int | None) -> Iterator[Place]:
    """Places of the tensors of one layer, or (None) of those that stand once."""
    inside = {part: fused for fused, parts in family.fused.items() for part in parts}
    filled: dict[str, int] = {}  # rows of each fused module so far
    for engine, _, _, per_layer, shape, bias in rows:
        if per_layer != (layer is not None):
            continue
        file = inside.get(engine) or family.names.get(engine, engine)
        row = filled.get(file, 0)
        filled[file] = row + shape[0]
        own, name = (f"model.layers.{layer}.{engine}", f"{stem}{file}") if per_layer else (engine, file)
        yield Place(f"{own}.weight", f"{name}.weight", row, tuple(shape), file in family.transposed)
        if bias:
            yield Place(f"{own}.bias", f"{name}.bias", row, tuple(shape[:1]))


def places(config: Mapping[str, Any]) -> list[Place]:
    """Every tensor of the engine and where it stands: tables, the layers in order, last norm and head."""
    family = family_of(config["model_type"])
    rows = _core.tensors(dict(config))
    once = list(_places_of(family, rows, "", None))
    behind = ("model.norm.", "lm_head.")
    result = [place for place in once if not place.engine.startswith(behind)]
    for layer in range(config["num_hidden_layers"]):
        result += _places_of(family, rows, f"{family.layers}.{layer}.", layer)
    return result + [place for place in once if place.engine.startswith(behind)]


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The file's name -> shape of every tensor that a model of this normalized configuration has."""
    shapes: dict[str, tuple[int, ...]] = {}
    turned = set()
    for place in places(config):
        shapes[place.name] = (place.row + place.shape[0], *place.shape[1:])
        if place.transposed:
            turned.add(place.name)
    return {name: shape[::-1] if name in turned else shape for name, shape in shapes.items()}


def head_name(config: Mapping[str, Any]) -> str:
    """The file's name of the head, which a tied model's file lacks."""
    return f"{family_of(config['model_type']).names.get('lm_head', 'lm_head')}.weight"


def trainable_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """tensor_shapes, and a tied model's head, which can be trained apart from the embedding."""
    shapes = tensor_shapes(config)
    return shapes | {head_name(config): (config["vocab_size"], config["hidden_size"])}


def transposed_names(config: Mapping[str, Any]) -> set[str]:
    """Names of the file's tensors that stand as (inputs, outputs)."""
    return {place.name for place in places(config) if place.transposed}


def _as_engine_rows(tensor: StoredTensor) -> StoredTensor:
    """A tensor of (inputs, outputs) as (outputs, inputs): a view where it is stored so, otherwise a copy."""
    shape = tensor.shape[::-1]
    if tensor.rows_are_outputs:
        return StoredTensor(tensor.name, tensor.dtype, shape, tensor.data)
    width = 4 if tensor.dtype == "F32" else 2
    values = tensor.data.reshape(*tensor.shape, width)
    return StoredTensor(tensor.name, tensor.dtype, shape, np.ascontiguousarray(values.swapaxes(0, 1)).reshape(-1))


def engine_tensors(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The engine's name -> its part of the file's tensors: views, where nothing has to be turned."""
    result: dict[str, StoredTensor] = {}
    turned: dict[str, StoredTensor] = {}
    for place in places(config):
        tensor = tensors[place.name]
        if place.transposed:
            tensor = turned.setdefault(place.name, tensor if place.name in turned else _as_engine_rows(tensor))
        result[place.engine] = tensor.rows(place.engine, place.row, place.shape[0])
    return result


def engine_offsets(config: Mapping[str, Any], offsets: Mapping[str, int]) -> dict[str, int]:
    """The engine's name -> first value in a flat vector that holds some of the file's tensors at `offsets`, rows =
    outputs."""
    found = {
        place.engine: offsets[place.name] + place.row * (place.shape[1] if len(place.shape) > 1 else 1)
        for place in places(config)
        if place.name in offsets
    }
    head = head_name(config)
    return found | ({"lm_head.weight": offsets[head]} if head in offsets else {})


def modules(config: Mapping[str, Any]) -> list[Module]:
    """The linear modules of the file in the order of the layers and of the engine's modules."""
    found: dict[str, list[Place]] = {}
    for place in places(config):
        engine = place.engine.removesuffix(".weight").split(".", 3)[-1]
        if place.engine.endswith(".weight") and engine in MODULES:
            found.setdefault(place.name.removesuffix(".weight"), []).append(place)
    result = []
    for name, parts in found.items():
        rows = tuple((MODULES.index(part.engine.removesuffix(".weight").split(".", 3)[-1]), part.row) for part in parts)
        outputs = parts[-1].row + parts[-1].shape[0]
        layer = int(parts[0].engine.split(".")[2])
        result.append(Module(name, layer, rows, outputs, parts[0].shape[1], parts[0].transposed))
    return result


_TABLES = {name: index for index, (name, *_) in enumerate(_core.TENSORS) if name in ("model.embed_tokens", "lm_head")}


def tables(config: Mapping[str, Any]) -> list[Module]:
    """The embedding and the head as modules that an adapter may name; they belong to no layer (-1)."""
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    names = family_of(config["model_type"]).names
    embedding, head = (names.get(name, name) for name in _TABLES)
    parts = [((index, 0),) for index in _TABLES.values()]
    return [
        Module(embedding, -1, parts[0], hidden, vocab, False, embedding=True),
        Module(head, -1, parts[1], vocab, hidden, False),
    ]


def adaptable(config: Mapping[str, Any]) -> list[Module]:
    """Everything that an adapter may name: the layers' linear modules, the embedding, the head."""
    return [*modules(config), *tables(config)]
