"""A model with its adapter merged in, as a Hugging Face directory or a GGUF file: W + scaling B A, tensor by tensor."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jpo.disk import make_folder_of, write_json
from jpo.errors import JpoError
from jpo.export import container
from jpo.export.base import Base, open_base
from jpo.export.card import CARD, is_own_card, merged_card, write_card
from jpo.export.changes import Adapter, read_changes
from jpo.export.container import TensorPlan, write_gguf
from jpo.export.directory import beside, copy_files, shard_bytes, write_tensors
from jpo.export.layout import architecture, gguf_file_rows, gguf_rows, hugging_face_rows, repeats_head
from jpo.export.lora_file import adapter_tensors
from jpo.export.metadata import model_metadata
from jpo.export.modelfile import MODELFILE, NO_TURNS, is_own_modelfile, modelfile, turns_of, write_modelfile
from jpo.export.presets import FILE_TYPES, AdapterType, FileType, Format, file_type, tensor_type
from jpo.export.rows import Rows, check_type
from jpo.export.vocabulary import tokenizer_metadata
from jpo.export.whole import beyond_low_rank, merged_base
from jpo.formats.chat import Ended
from jpo.formats.writing import hugging_face_config

_SCALARS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# files of a model directory beside its weights and config.json that belong to its use
_COMPANIONS = frozenset(
    (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "chat_template.json", "generation_config.json", "vocab.json", "merges.txt",
        "tokenizer.model",
    )
)  # fmt: skip


def _plan(base: Base, name: str, rows: Rows, dtype: str) -> TensorPlan:
    if rows.updates or dtype != rows.tensor.dtype:
        check_type(name, dtype, rows.shape[-1] if len(rows.shape) > 1 else 1)
    source = base.checkpoint.source
    return TensorPlan(name, dtype, rows.shape, lambda: rows.pieces(source, name, dtype, base.release))


def _write_directory(base: Base, adapter: Adapter, output: str, kind: str | None, limit: int, overwrite: bool) -> None:
    plans, types = [], []
    for name, rows in hugging_face_rows(base.checkpoint, adapter.changes):
        dtype = _SCALARS[kind] if kind else rows.tensor.dtype if rows.tensor.dtype in _TORCH else "F32"
        plans.append(_plan(base, name, rows, dtype))
        types.append((plans[-1].size, dtype))
    most = max(set(entry for _, entry in types), key=lambda entry: sum(size for size, own in types if own == entry))
    config = {**hugging_face_config(base.checkpoint.config), "torch_dtype": _TORCH[most]}
    with beside(output, overwrite, {CARD: is_own_card, MODELFILE: is_own_modelfile}) as folder:
        write_tensors(folder, plans, limit)
        if base.folder is not None:
            copy_files(base.folder, folder, _COMPANIONS.__contains__)
        else:
            base.checkpoint.tokenizer.save(folder)
            _write_generation(folder, base.checkpoint.generation)
        _modelfile(base, adapter, folder, ".")
        source, hf = base.checkpoint.source, base.checkpoint.config["hf"]
        write_card(folder, merged_card(source, hf, adapter.folder, adapter.settings))
        write_json(os.path.join(folder, "config.json"), config)


def _write_generation(folder: str, generation: Mapping[str, Any]) -> None:
    kept = {key: value for key, value in generation.items() if key != "transformers_version"}
    if kept:
        write_json(os.path.join(folder, "generation_config.json"), kept)


def _gguf_plans(base: Base, adapter: Adapter, kind: FileType | None) -> list[TensorPlan]:
    config, plans = base.checkpoint.config, []
    layers, tied = config["num_hidden_layers"], config["tie_word_embeddings"]
    if base.file is not None:
        found = gguf_file_rows(base.file, config, adapter.changes)
    else:
        found = gguf_rows(base.checkpoint, adapter.changes)
        tied = tied and not repeats_head(config)
    for name, rows in found:
        if kind is not None:
            dtype = tensor_type(kind, name, rows.shape, layers, tied)
        else:
            dtype = rows.tensor.dtype if len(rows.shape) > 1 and not rows.added else "F32"
        plans.append(_plan(base, name, rows, dtype))
    return plans


_MOSTLY: dict[str, FileType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def _gguf_metadata(
    base: Base, plans: Sequence[TensorPlan], kind: FileType | None
) -> tuple[dict[str, container.Entry], list[TensorPlan]]:
    """(metadata, further tensors: rotary factors that a Hugging Face model has in its configuration)."""
    metadata: dict[str, container.Entry] = {}
    more: list[TensorPlan] = []
    if base.file is not None:
        metadata.update(base.file.entries)
        if kind is not None:
            metadata["general.file_type"] = container.u32(file_type(kind))
    else:
        config = base.checkpoint.config
        own, more = model_metadata(config, {plan.name: plan.shape for plan in plans})
        sizes = {dtype: sum(plan.size for plan in plans if plan.dtype == dtype) for dtype in _MOSTLY}
        most = kind or _MOSTLY[max(sizes, key=lambda dtype: sizes[dtype])]
        metadata = {
            "general.architecture": container.text(architecture(config)),
            "general.type": container.text("model"),
            "general.name": container.text(os.path.basename(os.path.abspath(base.checkpoint.source))),
            "general.file_type": container.u32(file_type(most)),
            **own,
            **tokenizer_metadata(base.checkpoint.tokenizer, config["vocab_size"]),
        }
    metadata.setdefault("general.quantization_version", container.u32(2))
    return metadata, more


def _modelfile(base: Base, adapter: Adapter, folder: str, from_: str, adapter_file: str | None = None) -> None:
    """Ollama's Modelfile in `folder`, unless a person's own stands there. Says where it has no TEMPLATE, and why."""
    tokenizer, turns, without = base.checkpoint.tokenizer, None, NO_TURNS
    try:
        turns = turns_of(adapter.settings, tokenizer)
    except Ended as error:
        without = str(error)
    text = modelfile(from_, adapter_file, turns, tokenizer, base.checkpoint.generation, without)
    if write_modelfile(folder, text) and (turns is None or turns.go() is None):
        print(f"{MODELFILE} has no TEMPLATE: {without}; Ollama goes by the GGUF file's own", file=sys.stderr)


def _where(base: Base) -> str:
    """The base as a Modelfile beside an adapter names it."""
    if base.file is not None:
        return os.path.abspath(base.file.path)
    return os.path.abspath(base.folder) if base.folder is not None else base.checkpoint.source


def refuse_existing(path: str, overwrite: bool) -> None:
    """JpoError where something stands at `path` and overwrite is not given, or it is no file."""
    if os.path.isdir(path):
        raise JpoError(f"{path}: is a directory; give the name of the file to write")
    if os.path.exists(path) and not overwrite:
        raise JpoError(f"{path}: exists already; give another name, or --overwrite")
    make_folder_of(path)


def merge(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: Format = "hf",
    type: FileType | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> None:
    """Write `model` with the adapter merged in: a Hugging Face directory, or a GGUF file with tokenizer and metadata.

    type: of the weights; None: as the base stores them (quantized ones as float32 in a directory). hf takes f32, f16,
    bf16. The output appears whole or not at all. JpoError names what cannot be merged or written, and the remedy.
    """
    path = os.fspath(output)
    if format == "hf" and type is not None and type not in _SCALARS:
        raise JpoError(f"type: --format hf takes {', '.join(_SCALARS)}, got {type!r}; {type} needs --format gguf")
    if type is not None and type not in FILE_TYPES:
        raise JpoError(f"type: expected one of {', '.join(FILE_TYPES)}, got {type!r}")
    limit = shard_bytes(max_shard_size)
    if format == "gguf":
        refuse_existing(path, overwrite)
    base = open_base(model)
    beyond = beyond_low_rank(adapter)
    if beyond is not None:
        base, changes = merged_base(base, adapter, beyond, rounded=type is None)
    else:
        changes = read_changes(adapter, base.checkpoint.config, base.checkpoint.source)
    if format == "hf":
        _write_directory(base, changes, path, type, limit, overwrite)
    else:
        plans = _gguf_plans(base, changes, type)
        metadata, more = _gguf_metadata(base, plans, type)
        write_gguf(path, metadata, [*more, *plans])
        _modelfile(base, changes, os.path.dirname(path) or ".", f"./{os.path.basename(path)}")


def export_adapter(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    type: AdapterType = "f32",
    overwrite: bool = False,
) -> None:
    """Write the adapter as llama.cpp's file (general.type "adapter") for the GGUF form of `model`.

    q_proj's and k_proj's rows stand in the base's order; q8_0 keeps f16 where rows are no multiple of 32. JpoError
    where the model has no GGUF form or the adapter holds what llama.cpp's file cannot.
    """
    path = os.fspath(output)
    refuse_existing(path, overwrite)
    base = open_base(model)
    changes = read_changes(adapter, base.checkpoint.config, base.checkpoint.source)
    metadata, tensors = adapter_tensors(changes, base.checkpoint.config, base.file, type)
    write_gguf(path, metadata, tensors)
    _modelfile(base, changes, os.path.dirname(path) or ".", _where(base), f"./{os.path.basename(path)}")
