"""Checkpoints: written aside, synced, renamed; and the metrics file that goes with them. Knows files; never models."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jpo.errors import FormatError, JpoError

_NAME = re.compile(r"checkpoint-([1-9][0-9]*)")
METRICS = "metrics.jsonl"


def sync_folder(path: str) -> None:
    """Make the names in a directory survive a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(path: str) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(folder)


def finished(output: str) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    if not os.path.isdir(output):
        return []
    return sorted(int(match[1]) for name in os.listdir(output) if (match := _NAME.fullmatch(name)))


def save(
    output: str,
    step: int,
    write_model: Callable[[str], None],
    tensors: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
) -> str:
    """checkpoint-<step>: the model by write_model(folder), optimizer.safetensors, trainer_state.json."""
    from safetensors.numpy import save_file

    final, aside = os.path.join(output, f"checkpoint-{step}"), os.path.join(output, f".checkpoint-{step}.part")
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside)
    write_model(aside)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()},
        os.path.join(aside, "optimizer.safetensors"),
    )
    with open(os.path.join(aside, "trainer_state.json"), "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1)
    _sync_tree(aside)
    if os.path.isdir(final):  # the same step again (interrupted and resumed at once): equal bytes
        shutil.rmtree(final)
    os.rename(aside, final)
    sync_folder(output)
    return final


def prune(output: str, keep: int | None) -> None:
    """Keep the newest `keep` finished checkpoints; None: all."""
    if keep is not None:
        for step in finished(output)[:-keep]:
            shutil.rmtree(os.path.join(output, f"checkpoint-{step}"))


def prune_all(output: str) -> None:
    """Remove every checkpoint of a run that has ended."""
    for step in finished(output):
        shutil.rmtree(os.path.join(output, f"checkpoint-{step}"))


def load(folder: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(optimizer tensors, trainer state) of a finished checkpoint."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        with open(os.path.join(folder, "trainer_state.json"), encoding="utf-8") as file:
            state = json.load(file)
        return load_file(os.path.join(folder, "optimizer.safetensors")), state
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(
            f"{folder}: not a usable checkpoint ({error}); remove it to resume from the one before"
        ) from None


class MetricsFile:
    """metrics.jsonl: one line an optimizer step, appended; trimmed to a step on resume."""

    def __init__(self, output: str):
        os.makedirs(output, exist_ok=True)
        self.path = os.path.join(output, METRICS)
        self._file: Any = None

    def open(self, step: int) -> list[dict[str, Any]]:
        """Keeps the lines up to `step`, drops later or torn ones; returns those kept."""
        kept = []
        if step and os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        break
                    if row["step"] > step:
                        break
                    kept.append(row)
        part = self.path + ".part"
        with open(part, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        return kept

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """On disk before a checkpoint says that its steps happened."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def refuse_used(output: str) -> None:
    """JpoError where `output` already holds a run."""
    if finished(output) or os.path.exists(os.path.join(output, METRICS)):
        raise JpoError(
            f"{output}: already holds a training run; continue it with --resume (resume=True) or choose another output"
        )
