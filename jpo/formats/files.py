"""What all formats share: JSON of bounded size, tensors checked against a config."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from jpo import _core
from jpo.errors import FormatError
from jpo.formats.stored import BLOCKS, StoredTensor
from jpo.formats.tensors import layer_tensors, tensor_shapes

JSON_LIMIT = 256 << 20  # bytes; the largest tokenizer.json in use has some 35 MB


def open_regular(path: str) -> BinaryIO:
    """The file, opened for reading; FormatError for what is no regular file: a FIFO would hold its reader forever."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FormatError(f"{path}: cannot be read: not a regular file (a FIFO, a socket, a device or a directory)")
    return os.fdopen(handle, "rb")


def read_bytes(path: str, limit: int = JSON_LIMIT) -> bytes:
    """The file's bytes; FormatError where it cannot be read or is larger than `limit`."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise FormatError(f"{path}: {size} bytes are more than the {limit} that are plausible here")
            return file.read(limit + 1)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def read_text(path: str, limit: int = JSON_LIMIT) -> str:
    """The file as UTF-8 text."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not valid UTF-8 at byte {error.start}") from None


def _unique(path: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise FormatError(f"{path}: key {key!r} stands twice in one object")
                seen.add(key)
        return result

    return build


def parse_json_object(path: str, text: str) -> dict[str, Any]:
    """A JSON object without duplicate keys; FormatError names `path` and the place."""
    try:
        value = json.loads(text, object_pairs_hook=_unique(path))
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise FormatError(f"{path}: JSON nested too deeply") from None
    except FormatError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise FormatError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json(path: str, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """A file that holds one JSON object."""
    return parse_json_object(path, read_text(path, limit))


def check_tensors(where: str, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    """FormatError naming the first tensor that is missing, unexpected or of another shape than `config` demands."""
    layers = config["num_hidden_layers"]
    least = layer_tensors(config) * layers + 2
    if least > len(tensors):  # before the list of names is built: a hostile count must not cost memory
        raise FormatError(f"{where}: num_hidden_layers = {layers} needs {least} tensors or more, got {len(tensors)}")
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if name not in tensors:
            raise FormatError(f"{where}: tensor {name} is missing")
        if tensors[name].shape != shape:
            raise FormatError(
                f"{where}: tensor {name}: the configuration needs shape {shape}, got {tensors[name].shape}"
            )
    for name in tensors:
        if name not in shapes:
            raise FormatError(f"{where}: tensor {name} is unexpected: the configuration has no place for it")


def check_finite(where: str, tensors: Mapping[str, StoredTensor]) -> None:
    """FormatError naming the first tensor that holds NaN or infinity, the factors of quantized blocks included."""
    for name, tensor in tensors.items():
        first = _core.first_nonfinite(tensor.data, tensor.dtype)
        if first >= 0:
            place = np.unravel_index(first, tensor.shape) if tensor.shape else ()
            kind = "value" if BLOCKS[tensor.dtype][0] == 1 else f"{tensor.dtype} block"
            raise FormatError(
                f"{where}: tensor {name}: the {kind} at {tuple(map(int, place))} is NaN or infinite, and every score would "
                "be too: the file is damaged or its training diverged. check=False (--no-check) loads it all the same"
            )
