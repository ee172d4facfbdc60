"""Writing a Hugging Face model directory tensor by tensor: safetensors in shards with their index, and its companions.

Everything is written into a folder beside the output and renamed at the end. Knows the layout of the directory
(safetensors' format, transformers' names of shards and index); never where the values come from.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from jpo.disk import permitted, settle, sync_folder, sync_tree, temporary, write_json
from jpo.errors import JpoError
from jpo.export.container import TensorPlan

_INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def shard_bytes(size: str) -> int:
    """ "5GB", "300MB", "1GiB" or a number of bytes, as transformers reads max_shard_size."""
    plain = size.strip().upper().removesuffix("B")
    digits = plain.rstrip("KMGI")
    unit = _UNITS.get(plain[len(digits) :])
    try:
        count = float(digits) * (unit or 0)
    except ValueError:
        count = 0
    if not 1 <= count < 1 << 62:
        raise JpoError(f"max-shard-size: expected a size like 5GB, 300MB or 1GiB, got {size!r}")
    return int(count)


def shards(plans: Sequence[TensorPlan], limit: int) -> list[list[TensorPlan]]:
    """The tensors in order, cut so that no shard passes `limit` bytes, but where one tensor does alone."""
    result: list[list[TensorPlan]] = [[]]
    room = limit
    for plan in plans:
        if result[-1] and plan.size > room:
            result.append([])
            room = limit
        result[-1].append(plan)
        room -= plan.size
    return result


def _write_safetensors(path: str, plans: Sequence[TensorPlan]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        header[plan.name] = {
            "dtype": plan.dtype,
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + plan.size],
        }
        offset += plan.size
    body = json.dumps(header, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(body)) + body)
        for plan in plans:
            for piece in plan.pieces():
                file.write(piece)


def write_tensors(folder: str, plans: Sequence[TensorPlan], limit: int) -> None:
    """model.safetensors, or shards of at most `limit` bytes and their index."""
    parts = shards(plans, limit)
    if len(parts) == 1:
        _write_safetensors(os.path.join(folder, "model.safetensors"), plans)
        return
    places: dict[str, str] = {}
    for number, part in enumerate(parts):
        name = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        _write_safetensors(os.path.join(folder, name), part)
        places.update((plan.name, name) for plan in part)
    total = sum(plan.size for plan in plans)
    write_json(os.path.join(folder, _INDEX), {"metadata": {"total_size": total}, "weight_map": places})


def _weights(name: str) -> bool:
    return name == _INDEX or (name.startswith("model") and name.endswith(".safetensors"))


def _replace(folder: str, output: str, keep: Mapping[str, Callable[[str], bool]]) -> None:
    """Moves the folder's files into `output`, config.json last: a half-moved directory is no loadable one."""
    config = os.path.join(output, "config.json")
    if os.path.exists(config):
        os.unlink(config)
    names = sorted(os.listdir(folder), key=lambda name: name == "config.json")
    for name in os.listdir(output):
        if _weights(name) and name not in names:
            os.unlink(os.path.join(output, name))
    for name in names:
        place = os.path.join(output, name)
        if name in keep and os.path.exists(place) and not keep[name](place):
            os.unlink(os.path.join(folder, name))
            continue
        os.replace(os.path.join(folder, name), place)
    os.rmdir(folder)
    sync_folder(output)


@contextmanager
def beside(output: str, overwrite: bool, keep: Mapping[str, Callable[[str], bool]]) -> Iterator[str]:
    """A folder to write into, which becomes `output` when the block ends well and vanishes otherwise; what killed
    writers of `output` left vanishes too.

    JpoError where output holds something and overwrite is not given; with it, its files of these names are replaced,
    but one of `keep` (file name -> whether the one at that path may be replaced) that says no.
    """
    output = os.path.abspath(output)
    if os.path.exists(output) and not os.path.isdir(output):
        raise JpoError(f"{output}: is a file; give a directory for --format hf")
    taken = os.path.isdir(output) and bool(os.listdir(output))
    if taken and not overwrite:
        raise JpoError(f"{output}: holds files already; give an empty or new directory, or --overwrite")
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with temporary(output, folder=True) as folder:
        yield folder
        if taken:
            sync_tree(folder)
            _replace(folder, output, keep)
        else:
            os.chmod(folder, permitted(0o777))
            settle(folder, output)


def copy_files(source: str, folder: str, wanted: Callable[[str], bool]) -> list[str]:
    """Copies the regular files of `source` that are wanted; their names."""
    copied = []
    for name in sorted(os.listdir(source)):
        path = os.path.join(source, name)
        if wanted(name) and os.path.isfile(path):
            shutil.copyfile(path, os.path.join(folder, name))
            copied.append(name)
    return copied
