"""Hugging Face model directories: config.json, (sharded) safetensors, tokenizer.json and its companions.

Tensors are views into memory maps of the shards. The safetensors package validates each shard; the header is then
read for the places, because the package hands out copies and has no NumPy type for bfloat16.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

import numpy as np
import tokenizers

from jpo import tokenization
from jpo.errors import FormatError
from jpo.formats.bounded_tokens import needs_bounds, probe
from jpo.formats.config import normalize
from jpo.formats.families import Family, family_of
from jpo.formats.files import check_tensors, open_regular, parse_json_object, read_json, read_text
from jpo.formats.stored import Checkpoint, StoredTensor, aligned, tensor_bytes
from jpo.formats.values import token_ids

_DTYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_HEADER_LIMIT = 100_000_000  # bytes, the format's own
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SMALL = 16 << 20  # bytes; configurations and templates are far below


def _map_shard(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    """(the file's bytes, its header) of a safetensors file that the safetensors package accepts."""
    import safetensors

    try:
        with open_regular(path) as file, safetensors.safe_open(path, framework="numpy"):
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(f"{path}: not a valid safetensors file: {error}") from None
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= length <= min(_HEADER_LIMIT, len(data) - 8):
        raise FormatError(f"{path}: header of {length} bytes does not fit into the file ({len(data)} bytes)")
    try:
        text = data[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: header is not valid UTF-8") from None
    return np.frombuffer(data, np.uint8)[8 + length :], parse_json_object(f"{path}: header", text)


def _entry(path: str, name: str, entry: Any, data: np.ndarray) -> StoredTensor:
    """One tensor of a header, its place checked again: the file may have changed since the package looked."""
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        raise FormatError(f"{path}: tensor {name}: malformed header entry")
    dtype, shape, offsets = entry.get("dtype"), tuple(entry["shape"]), entry.get("data_offsets")
    if dtype not in _DTYPES:
        raise FormatError(
            f"{path}: tensor {name}: dtype {dtype} is not implemented; expected one of {', '.join(_DTYPES)}"
        )
    if not isinstance(offsets, list) or [type(value) for value in offsets] != [int, int]:
        raise FormatError(f"{path}: tensor {name}: malformed data_offsets {offsets!r}")
    if any(type(extent) is not int for extent in shape):
        raise FormatError(f"{path}: tensor {name}: malformed shape {shape!r}")
    start, end = offsets
    size = tensor_bytes(path, name, dtype, shape)
    if not 0 <= start <= end <= len(data) or end - start != size:
        raise FormatError(
            f"{path}: tensor {name}: data_offsets {offsets} do not hold the {size} bytes of {dtype} {shape}"
        )
    return StoredTensor(name, dtype, shape, aligned(data[start:end], dtype))


def _ignorable(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")  # a buffer that old versions stored; derived here


def _read_shard(path: str, tensors: dict[str, StoredTensor], wanted: set[str] | None) -> None:
    """Adds the shard's tensors (all, or exactly those that the index places in it) to `tensors`."""
    data, header = _map_shard(path)
    header.pop("__metadata__", None)
    for name in sorted(wanted - header.keys()) if wanted is not None else ():
        raise FormatError(f"{path}: tensor {name}: the shard index places it here, but the file lacks it")
    for name, entry in header.items():
        if _ignorable(name) or (wanted is not None and name not in wanted):
            continue
        tensors[name] = _entry(path, name, entry, data)


def read_safetensors(path: str) -> dict[str, StoredTensor]:
    """All tensors of one safetensors file, as views into a memory map; FormatError names file and tensor."""
    tensors: dict[str, StoredTensor] = {}
    _read_shard(path, tensors, None)
    return tensors


def shards_of(folder: str, path: str) -> dict[str, set[str]]:
    """Shard file name -> tensor names, from model.safetensors.index.json; names that leave the folder are refused."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{path}: key weight_map: expected an object of tensor names and file names")
    shards: dict[str, set[str]] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise FormatError(f"{path}: tensor {name}: expected the name of a .safetensors file, got {shard!r}")
        if shard != os.path.basename(shard) or "\\" in shard or "\0" in shard:
            raise FormatError(f"{path}: tensor {name}: shard {shard!r} leaves the directory")
        shards.setdefault(shard, set()).add(name)
    return shards


def read_tensors(folder: str) -> dict[str, StoredTensor]:
    """All tensors of a directory's safetensors, sharded or not."""
    tensors: dict[str, StoredTensor] = {}
    index = os.path.join(folder, _INDEX)
    single = os.path.join(folder, _SINGLE)
    if os.path.exists(single):  # where both stand, transformers reads the single file
        _read_shard(single, tensors, None)
    elif os.path.exists(index):
        for shard, names in sorted(shards_of(folder, index).items()):
            _read_shard(os.path.join(folder, shard), tensors, {name for name in names if not _ignorable(name)})
    else:
        hint = " (pytorch_model.bin is a pickle and is not read)" if _holds_pickle(folder) else ""
        raise FormatError(
            f"{folder}: neither {_SINGLE} nor {_INDEX} found{hint}; save the model with safe_serialization=True"
        )
    return tensors


def _holds_pickle(folder: str) -> bool:
    return any(name.startswith("pytorch_model") for name in os.listdir(folder))


def _named_for(family: Family, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Without what holds nothing to compute with, and under whole names, where the inner class of a model wrote it."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(family.ignored))}
    if not family.prefix or any(name.startswith(family.prefix) for name in kept):
        return kept
    return {name if name.startswith("lm_head.") else f"{family.prefix}{name}": tensor for name, tensor in kept.items()}


def _drop_tied_head(where: str, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    """A tied model may store its head a second time; a head that differs contradicts the configuration."""
    if not config["tie_word_embeddings"] or "lm_head.weight" not in tensors:
        return
    names = family_of(config["model_type"]).names
    embedding = tensors.get(f"{names.get('model.embed_tokens', 'model.embed_tokens')}.weight")
    head = tensors["lm_head.weight"]
    if embedding is not None and (head.dtype != embedding.dtype or not np.array_equal(head.data, embedding.data)):
        raise FormatError(
            f"{where}: tensor lm_head.weight differs from the embedding although tie_word_embeddings is true; "
            "set tie_word_embeddings to false in config.json, or remove the tensor"
        )
    del tensors["lm_head.weight"]


def _special_token(path: str, key: str, value: Any) -> str | None:
    """A special token as tokenizer_config.json spells it: a string, or an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and (not isinstance(value, str) or any(0xD800 <= ord(letter) < 0xE000 for letter in value)):
        raise FormatError(f"{path}: key {key}: expected a token, got {value!r}")
    return value


def _chat_template(folder: str, settings: dict[str, Any]) -> str | None:
    """The chat template: chat_template.jinja first, then tokenizer_config.json (one, or the one named default)."""
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        return read_text(path, _SMALL)
    value = settings.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise FormatError(
            f"{folder}/tokenizer_config.json: key chat_template: expected a template, got {type(value).__name__}"
        )
    return value


def _backend(path: str) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether it may run within bounds alone."""
    text = read_text(path)
    bounded = needs_bounds(path, text)
    if bounded:
        probe(path, text)
    try:
        return tokenizers.Tokenizer.from_str(text), bounded
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the package raises bare Exception, and its panics derive from BaseException
        raise FormatError(f"{path}: the tokenizers package refuses it: {str(error)[:300]}") from None


def load_tokenizer(
    folder: str, config: dict[str, Any] | None = None, eos_token_ids: list[int] | None = None
) -> tokenization.Tokenizer:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template of a directory.

    `config` (a normalized one) names BOS and EOS where the tokenizer's files do not; `eos_token_ids` are added.
    """
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path):
        raise FormatError(
            f"{folder}: tokenizer.json is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    backend, bounded = _backend(path)
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        extra = os.path.join(folder, name)
        if os.path.exists(extra):
            settings.update(read_json(extra, _SMALL))
    names: dict[str, str | None] = {}
    for key, number in (
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", ""),
        ("pad_token", ""),
    ):
        names[key] = _special_token(os.path.join(folder, "tokenizer_config.json"), key, settings.get(key))
        if names[key] is None and number and config is not None and key not in settings:
            given = token_ids(f"{folder}: {number}", config["hf"].get(number))
            names[key] = backend.id_to_token(given[0]) if given and given[0] < 1 << 32 else None
        token = names[key]
        if token is not None and number and backend.token_to_id(token) is None:
            backend.add_special_tokens([token])  # as transformers does; padding and unknown never occur here
    template = _chat_template(folder, settings)
    plain = {key: value for key, value in settings.items() if key != "chat_template"}
    return tokenization.Tokenizer(
        backend,
        special=names,
        eos_token_ids=eos_token_ids or (),
        chat_template=template,
        settings=plain,
        bounded=bounded,
    )


def load_directory(folder: str | os.PathLike[str]) -> Checkpoint:
    """A Hugging Face model directory as a Checkpoint; FormatError names file and key or tensor."""
    folder = os.fspath(folder)
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        hint = "a model's directory holds config.json, *.safetensors and tokenizer.json"
        if _is_adapter(folder):
            hint = "this is an adapter: load its base model first, then the adapter"
        raise FormatError(f"{folder}: config.json is missing; {hint}")
    extra = os.path.join(folder, "generation_config.json")
    generation = read_json(extra, _SMALL) if os.path.exists(extra) else {}
    config = normalize(path, read_json(path, _SMALL), generation=generation)
    tensors = _named_for(family_of(config["model_type"]), read_tensors(folder))
    _drop_tied_head(folder, config, tensors)
    check_tensors(folder, config, tensors)
    tokenizer = load_tokenizer(folder, config, config["eos_token_ids"])
    if tokenizer.vocab_size > config["vocab_size"]:
        _refuse_longer_vocabulary(folder, tokenizer, config["vocab_size"])
    return Checkpoint(config, tensors, tokenizer, folder, generation)


def _refuse_longer_vocabulary(folder: str, tokenizer: tokenization.Tokenizer, rows: int) -> None:
    raise FormatError(f"{folder}: tokenizer.json: {tokenizer.vocab_size} tokens are more than vocab_size = {rows}")


def _is_adapter(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, "adapter_config.json"))
