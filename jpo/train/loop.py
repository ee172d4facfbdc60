"""The loop: steps, schedule, metrics, checkpoints, interruption. Loss and batches come from the trainer outside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from jpo.errors import JpoError
from jpo.model import LanguageModel
from jpo.train import checkpoint
from jpo.train.config import TrainingConfig
from jpo.train.optimizer import AdamW, learning_rate

_FREE_ON_RESUME = {
    "output",
    "steps",
    "epochs",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "tensorboard",
    "token_budget",
    "gradient_checkpointing",
    "template",  # the tokens say it all, whatever it was called then
}


class Task(Protocol):
    """What a trainer gives the loop."""

    def step(self, indices: Sequence[int], step: int) -> dict[str, float]:
        """Add the step's gradients; its metrics."""

    def evaluate(self) -> dict[str, float]:
        """Metrics on the evaluation set, eval_ prefix; {} without one."""

    def save(self, folder: str) -> None:
        """Write the model or adapter."""


def fingerprint(config: TrainingConfig, data: Sequence[Any]) -> dict[str, str]:
    """What must not change between a run and its resumption."""
    digest = hashlib.sha256()
    for ids in data:
        digest.update(ids.tobytes())
        digest.update(b"|")
    kept = {key: value for key, value in config.to_dict().items() if key not in _FREE_ON_RESUME}
    return {"data": digest.hexdigest()} | {key: json.dumps(value) for key, value in kept.items()}


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds a Ctrl-C back until the block has ended (only the main thread gets one)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


class Loop:
    """Runs `total` optimizer steps of a task over an order of data."""

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        config: TrainingConfig,
        order: Any,
        total: int,
        warmup: int,
        mark: dict[str, str],
    ):
        assert lm.trainable is not None
        self.lm, self.task, self.config, self.order = lm, task, config, order
        self.total, self.warmup, self.mark = total, warmup, mark
        self.optimizer = AdamW(lm.trainable.params, config)
        self.tokens = 0
        self.history: dict[str, list[Any]] = {}
        self._metrics: checkpoint.MetricsFile | None = None

    def run(self, resume: bool, callbacks: Sequence[Callable[[dict[str, Any]], None]] = ()) -> dict[str, list[Any]]:
        """Train to the end; KeyboardInterrupt leaves a checkpoint of the last whole step."""
        first = self._start(resume)
        assert self.lm.trainable is not None
        self.lm.trainable.grads[:] = 0
        done, before = first, time.perf_counter()
        try:
            for step in range(first, self.total):
                metrics = self.task.step(self.order.batch(step), step)
                with _uninterrupted():  # parameters, counter and metrics move together
                    row = self._update(metrics, step)
                    done = step + 1
                    now = time.perf_counter()
                    row["step_seconds"], before = now - before, now
                    evaluate = self.config.eval_steps and done % self.config.eval_steps == 0 or done == self.total
                    if not evaluate:
                        self._record(row, callbacks)
                if evaluate:
                    try:
                        row |= self.task.evaluate()
                    finally:
                        self._record(row, callbacks)
                if self.config.save_steps and done % self.config.save_steps == 0 and done < self.total:
                    self._save(done)
        except KeyboardInterrupt:
            self.lm.trainable.grads[:] = 0
            if self.config.output and done > first:
                self._save(done)
            raise
        finally:
            if self._metrics:
                self._metrics.close()
        self._finish()
        return dict(self.history)

    def _update(self, metrics: dict[str, float], step: int) -> dict[str, Any]:
        assert self.lm.trainable is not None
        rate = learning_rate(self.config, step, self.total, self.warmup)
        norm = self.optimizer.step(self.lm.trainable.grads, rate)
        self.tokens += int(metrics.pop("num_tokens"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row: dict[str, Any] = {"step": step + 1, "epoch": round((step + 1) / self.order.steps_per_epoch, 6)}
        return (
            row
            | metrics
            | {"grad_norm": norm, "learning_rate": rate, "num_tokens": self.tokens, "peak_rss_gb": round(peak, 4)}
        )

    def _record(self, row: dict[str, Any], callbacks: Sequence[Callable[[dict[str, Any]], None]]) -> None:
        self._remember(row)
        if self._metrics:
            self._metrics.write(row)
        for callback in callbacks:
            callback(row)

    def _remember(self, row: dict[str, Any]) -> None:
        rows = len(self.history.get("step", ()))
        for key in dict.fromkeys([*row, *self.history]):  # columns stay of one length: a DataFrame
            self.history.setdefault(key, [None] * rows).append(row.get(key))

    def _start(self, resume: bool) -> int:
        output = self.config.output
        if not output:
            if resume:
                raise JpoError("resume needs the run's output directory")
            return 0
        steps = checkpoint.finished(output)
        if not resume:
            checkpoint.refuse_used(output)
        self._metrics = checkpoint.MetricsFile(output)
        if not (resume and steps):
            if resume:
                print(f"{output}: no finished checkpoint to resume from; starting anew")
            self._metrics.open(0)
            return 0
        folder = os.path.join(output, f"checkpoint-{steps[-1]}")
        tensors, state = checkpoint.load(folder)
        stored = {key: value for key, value in state["mark"].items() if key not in _FREE_ON_RESUME}
        changed = sorted(key for key in {*self.mark, *stored} if self.mark.get(key) != stored.get(key))
        if changed:
            raise JpoError(
                f"{folder}: cannot resume, because {', '.join(changed)} changed since; give the same options and data"
            )
        if state["step"] > self.total:
            raise JpoError(f"{folder} is at step {state['step']}, beyond the {self.total} that are asked for")
        self.optimizer.load(tensors, state["step"])
        self.tokens = state["num_tokens"]
        for row in self._metrics.open(state["step"]):
            self._remember(row)
        return int(state["step"])

    def _save(self, step: int) -> None:
        output = self.config.output
        if not output or not self._metrics:
            return
        self._metrics.sync()
        state = {"step": step, "num_tokens": self.tokens, "mark": self.mark}
        checkpoint.save(output, step, self.task.save, self.optimizer.state(), state)
        checkpoint.prune(output, self.config.save_total_limit)

    def _finish(self) -> None:
        if self.config.output:
            self.task.save(self.config.output)
            checkpoint.sync_folder(self.config.output)
