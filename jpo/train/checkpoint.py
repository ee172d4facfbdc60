"""Checkpoints: written aside, digested, synced, renamed; and the metrics file that goes with them.

A checkpoint is finished when its folder has its own name; manifest.json, written last, holds a digest of every other
file. Nothing that stands is removed before what replaces it stands. Knows files; never models.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jpo.disk import lock, naming_faults, settle, sha256_of, sweep_temporaries, write_atomic
from jpo.errors import FormatError, JpoError

_NAME = re.compile(r"checkpoint-([1-9][0-9]*)")
_LEFT = re.compile(r"\.checkpoint-[1-9][0-9]*\.(part|old)")
METRICS, MANIFEST, STATE, OPTIMIZER = "metrics.jsonl", "manifest.json", "trainer_state.json", "optimizer.safetensors"
_STATE_KEYS = {"step": int, "num_tokens": int, "mark": dict}


# ---- one run at a time ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(output: str) -> Iterator[None]:
    """`output` belongs to this run inside the block; JpoError where another process trains there. The lock lies on the
    directory itself and goes with the process, however that ends."""
    with naming_faults(output, "a training run needs a directory of its own: choose another output"):
        os.makedirs(output, exist_ok=True)
        handle = os.open(output, os.O_RDONLY)
    try:
        if lock(handle, f"{output}: another process trains there; wait for it, or choose another output"):
            sweep_temporaries(output)
        yield
    finally:
        os.close(handle)


# ---- writing --------------------------------------------------------------------------------------------------------


def _write_tensors(path: str, tensors: Mapping[str, Any]) -> None:
    """float32 vectors as a safetensors file, straight from their memory: no copy, and the system's own errors. A vector
    that stands nowhere as a whole gives its pieces()."""
    header: dict[str, Any] = {}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            for piece in value.pieces() if hasattr(value, "pieces") else (value,):
                file.write(np.ascontiguousarray(piece, dtype="<f4").data)


def _files(folder: str) -> list[str]:
    """Every file below the folder but the manifest, by its path in it, sorted."""
    found = [
        os.path.relpath(os.path.join(place, name), folder) for place, _, names in os.walk(folder) for name in names
    ]
    return sorted(name for name in found if name != MANIFEST)


def _write_manifest(folder: str, step: int) -> None:
    files = {name: os.path.join(folder, name) for name in _files(folder)}
    entries = {name: {"bytes": os.path.getsize(path), "sha256": sha256_of(path)} for name, path in files.items()}
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump({"format": 1, "step": step, "files": entries}, file, indent=1)


def finished(output: str) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    if not os.path.isdir(output):
        return []
    return sorted(int(match[1]) for name in os.listdir(output) if (match := _NAME.fullmatch(name)))


def path_of(output: str, step: int) -> str:
    """The folder of a step's checkpoint."""
    return os.path.join(output, f"checkpoint-{step}")


def save(
    output: str,
    step: int,
    write_model: Callable[[str], None],
    tensors: Mapping[str, Any],
    state: Mapping[str, Any],
) -> str:
    """checkpoint-<step>: the model by write_model(folder), optimizer.safetensors, trainer_state.json, manifest.json.

    A sound checkpoint of this step that already stands is left alone (a run that was interrupted just after it); a
    damaged one is set aside until the new one stands. JpoError names a fault of the file system; what stood before
    still does."""
    final, aside = path_of(output, step), os.path.join(output, f".checkpoint-{step}.part")
    if stands(output, step):
        return final
    others = [path_of(output, other) for other in finished(output) if other != step]
    before = f"{others[-1]} still stands" if others else "there is none before it"
    try:
        with naming_faults(final, f"{before}; mend this and go on with --resume"):
            shutil.rmtree(aside, ignore_errors=True)
            os.makedirs(aside)
            write_model(aside)
            _write_tensors(os.path.join(aside, OPTIMIZER), tensors)
            with open(os.path.join(aside, STATE), "w", encoding="utf-8") as file:
                json.dump(state, file, indent=1)
            _write_manifest(aside, step)
            settle(aside, final, old=_old(output, step))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # what it holds may be what fills the disk
        raise
    sweep(output)
    return final


def _old(output: str, step: int) -> str:
    return os.path.join(output, f".checkpoint-{step}.old")


def _remove(output: str, step: int) -> None:
    """Out of the finished ones by one rename, so that a half removed folder never looks like one."""
    old = _old(output, step)
    shutil.rmtree(old, ignore_errors=True)
    os.rename(path_of(output, step), old)
    shutil.rmtree(old, ignore_errors=True)


def sweep(output: str) -> None:
    """Remove what interrupted writes and removals left."""
    for name in os.listdir(output):
        if _LEFT.fullmatch(name):
            shutil.rmtree(os.path.join(output, name), ignore_errors=True)


def prune(output: str, keep: int | None, step: int) -> None:
    """Keep the newest `keep` finished checkpoints up to `step`, which was just written; None: all."""
    if keep is not None:
        for old in [other for other in finished(output) if other <= step][:-keep]:
            _remove(output, old)


def prune_all(output: str) -> None:
    """Remove every checkpoint of a run that has ended."""
    for step in finished(output):
        _remove(output, step)


# ---- reading --------------------------------------------------------------------------------------------------------


def _json(path: str) -> dict[str, Any]:
    from jpo.formats.files import read_json

    return read_json(path)


def _check_manifest(folder: str, step: int) -> None:
    """FormatError naming the first file that is not what was written. A folder without a manifest is of an earlier
    version of jpo: it is taken as it is."""
    path = os.path.join(folder, MANIFEST)
    if not os.path.exists(path):
        if "format" in _json(os.path.join(folder, STATE)):
            raise FormatError(f"{path} is missing")
        return
    manifest = _json(path)
    entries = manifest.get("files")
    if not isinstance(entries, dict) or not {STATE, OPTIMIZER} <= set(entries):
        raise FormatError(f"{path}: key files: expected the names and digests of the checkpoint's files")
    if manifest.get("step") != step:
        raise FormatError(f"{path}: is of step {manifest.get('step')!r}, in the folder of step {step}")
    for name, entry in entries.items():
        file = os.path.join(folder, name)
        if not isinstance(entry, dict) or not os.path.isfile(file):
            raise FormatError(f"{file} is missing")
        size = os.path.getsize(file)
        if size != entry.get("bytes"):
            raise FormatError(f"{file}: has {size} bytes, {entry.get('bytes')} were written")
        if sha256_of(file) != entry.get("sha256"):
            raise FormatError(f"{file}: its contents are not what was written")


def _check_state(path: str, state: Mapping[str, Any], step: int) -> None:
    for key, kind in _STATE_KEYS.items():
        value = state.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise FormatError(f"{path}: key {key}: expected {kind.__name__}, got {value!r}")
    if state["step"] != step:
        raise FormatError(f"{path}: is of step {state['step']}, in the folder of step {step}")


def _tensors(path: str, size: int | None) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, np.ndarray[Any, Any]] = load_file(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise FormatError(f"{path}: not a usable safetensors file ({error})") from None
    for name in ("params", "m", "v"):
        value = tensors.get(name)
        if value is None:
            raise FormatError(f"{path}: tensor {name} is missing")
        if value.dtype != np.float32 or value.ndim != 1 or (size is not None and len(value) != size):
            raise FormatError(f"{path}: tensor {name}: expected float32 ({size},), got {value.dtype} {value.shape}")
        if not math.isfinite(float(np.sum(value, dtype=np.float64))) and not np.isfinite(value).all():
            raise FormatError(f"{path}: tensor {name} holds NaN or infinity")
    return tensors


def load(folder: str, size: int | None = None) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """(optimizer tensors params, m, v of `size` values, trainer state) of a finished checkpoint, every file verified.

    FormatError names the file and what is wrong with it."""
    step = int(_NAME.fullmatch(os.path.basename(os.path.normpath(folder)))[1])  # type: ignore[index]
    try:
        _check_manifest(folder, step)
        state = _json(os.path.join(folder, STATE))
        _check_state(os.path.join(folder, STATE), state, step)
        return _tensors(os.path.join(folder, OPTIMIZER), size), state
    except OSError as error:
        raise FormatError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None


def compute_of(output: str) -> str | None:
    """The compute type that the run in `output` was started with, by its newest checkpoint; None where there is
    none."""
    for mark in _marks(output):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return str(json.loads(mark["compute"]))
    return None


def slots_of(output: str) -> int | None:
    """As compute_of, the slots of the run's steps: 1 where it knew of none."""
    for mark in _marks(output):
        with contextlib.suppress(ValueError, TypeError):
            return int(json.loads(mark.get("slots", "1")) or 1)
    return None


def _marks(output: str) -> Iterator[dict[str, Any]]:
    """What the finished checkpoints say of their run, the newest first; unreadable ones are passed over."""
    for step in reversed(finished(output)):
        with contextlib.suppress(FormatError, OSError):
            mark = _json(os.path.join(path_of(output, step), STATE)).get("mark")
            if isinstance(mark, dict):
                yield mark


def sound(folder: str, step: int) -> bool:
    """Whether the folder holds a checkpoint of this step, with a manifest, as it was written."""
    try:
        _check_manifest(folder, step)
        return os.path.exists(os.path.join(folder, MANIFEST))
    except (FormatError, OSError):
        return False


def stands(output: str, step: int) -> bool:
    """Whether a sound checkpoint of this step is there already, which `save` leaves alone."""
    folder = path_of(output, step)
    return os.path.isdir(folder) and sound(folder, step)


def load_newest(
    output: str, size: int, say: Callable[[str], None]
) -> tuple[str, dict[str, np.ndarray[Any, Any]], dict[str, Any]] | None:
    """(folder, tensors, state) of the newest sound checkpoint; None where there is no finished one at all.

    A damaged one is named through `say` and renamed to checkpoint-N.damaged, and the one before it is taken. JpoError
    where all are damaged: starting anew is for the user to decide."""
    problems = []
    for step in reversed(finished(output)):
        folder = path_of(output, step)
        try:
            tensors, state = load(folder, size)
        except FormatError as error:
            problems.append((folder, str(error)))
            continue
        for damaged, problem in problems:
            say(f"{damaged} is damaged and set aside as {_rename_damaged(damaged)}: {problem}")
        if problems:
            say(f"going on from {folder}")
        return folder, tensors, state
    if problems:
        shown = "; ".join(problem for _, problem in problems)
        raise JpoError(f"{output}: no checkpoint can be used ({shown}); start anew in another output")
    return None


def _rename_damaged(folder: str) -> str:
    target, count = f"{folder}.damaged", 1
    while os.path.exists(target):
        count += 1
        target = f"{folder}.damaged-{count}"
    os.rename(folder, target)
    return target


# ---- metrics --------------------------------------------------------------------------------------------------------


def rows_while(path: str, wanted: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file up to the first that is torn or not `wanted`; none where there is no such file."""
    kept: list[dict[str, Any]] = []
    if not os.path.exists(path):
        return kept
    with (
        contextlib.suppress(ValueError, KeyError, TypeError, RecursionError),
        open(path, encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            row = json.loads(line)
            if not wanted(row):
                break
            kept.append(row)
    return kept


class MetricsFile:
    """metrics.jsonl: one line an optimizer step, appended; trimmed to a step on resume."""

    def __init__(self, output: str):
        self.path = os.path.join(output, METRICS)
        self._file: Any = None

    def open(self, step: int) -> list[dict[str, Any]]:
        """Keeps the lines up to `step`, drops later or torn ones; returns those kept."""
        kept = rows_while(self.path, lambda row: not row["step"] > step) if step else []

        def write(part: str) -> None:
            with open(part, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)

        with self._faults():
            write_atomic(self.path, write)
            self._file = open(self.path, "a", encoding="utf-8")  # closed by close()
        return kept

    def _faults(self) -> contextlib.AbstractContextManager[None]:
        return naming_faults(self.path, "mend this and go on with --resume")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._faults():
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """On disk before a checkpoint says that its steps happened."""
        with self._faults():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a fault that a write already named is not raised again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def refuse_used(output: str) -> None:
    """JpoError where `output` already holds a run: a checkpoint, or the line of a step."""
    metrics = os.path.join(output, METRICS)
    if finished(output) or (os.path.exists(metrics) and os.path.getsize(metrics)):
        raise JpoError(
            f"{output}: already holds a training run; continue it with --resume (resume=True) or choose another output"
        )
