"""What may watch a training run, and end it: the interface, early stopping, the best evaluation's adapter.

A callback is an object with some of Callback's methods, or a function that is called with each row of metrics.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jpo.disk import settle
from jpo.errors import JpoError
from jpo.train.config import TrainingConfig

Row = dict[str, Any]  # a line of metrics.jsonl


@dataclass
class Run:
    """What a callback is told; setting `stop` ends the run after the step, with its adapter saved as at the end."""

    config: TrainingConfig
    total: int  # optimizer steps
    steps_per_epoch: int
    warmup: int  # steps
    unit: str  # what a step is made of: "pairs" or "examples"
    training: int  # records
    evaluation: Mapping[str, int]  # records of each evaluation set; "" names the only one
    history: dict[str, list[Any]]  # metric -> values so far
    seconds_per_step: Callable[[], float]  # estimated, by computing a part of the next step
    save: Callable[[str], None]  # writes the model or adapter into a folder
    first: int = 0  # steps that an earlier run of the same output made
    step: int = 0  # steps done
    baseline: dict[str, float] = field(default_factory=dict)  # evaluation before the first step
    samples: list[Row] = field(default_factory=list)  # of this evaluation, on their way to on_samples
    stop: bool = False


class Callback:
    """Does nothing; override what you need. Every method may read and change the `run`."""

    def on_train_begin(self, run: Run) -> None:
        """Before the first step; an evaluation set was evaluated once, see run.baseline."""

    def on_log(self, run: Run, row: Row) -> None:
        """After each optimizer step, with its line of metrics.jsonl."""

    def measure(self, run: Run) -> Mapping[str, float]:
        """Further metrics of an evaluation, under names of their own with the prefix eval_; they are written, reported
        and followed like the others. Asked before the first step too."""
        return {}

    def on_samples(self, run: Run, rows: list[Row]) -> None:
        """After an evaluation with eval_samples: {step, instruction, output, temperature}, and with eval_judge `other`
        and `feedback`."""

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """After each evaluation; the keys have the prefix eval_."""

    def on_save(self, run: Run, folder: str) -> None:
        """After each checkpoint."""

    def on_train_end(self, run: Run) -> None:
        """When the run ends, also where it was interrupted or failed."""


class Function(Callback):
    """A plain function of each row as a callback."""

    def __init__(self, function: Callable[[Row], Any]):
        self.function = function

    def on_log(self, run: Run, row: Row) -> None:
        """Calls the function."""
        self.function(row)


Callbacks = Sequence[Callback | Callable[[Row], Any]]


def as_callbacks(given: Callbacks | None) -> list[Callback]:
    """Functions wrapped; JpoError for what is neither."""
    result: list[Callback] = []
    for item in given or ():
        if not isinstance(item, Callback) and not callable(item):
            raise JpoError(f"callbacks: expected jpo.train.Callback objects or functions, got {item!r}")
        result.append(item if isinstance(item, Callback) else Function(item))
    return result


def _smaller_is_better(metric: str) -> bool:
    return metric.rsplit("/", 1)[-1].endswith("loss")


class Best(Callback):
    """Follows one metric of the evaluations: keeps the best one's adapter in OUTPUT/best, and ends the run after
    `patience` evaluations without a better one (None: never). Metrics that end in "loss" are better when smaller."""

    def __init__(self, metric: str, patience: int | None = None, keep: bool = True):
        self.metric, self.patience, self.keep = metric, patience, keep
        self.best: float | None = None
        self.waited = 0

    def _better(self, value: float) -> bool:
        if self.best is None:
            return True
        return value < self.best if _smaller_is_better(self.metric) else value > self.best

    def _meet(self, value: float) -> bool:
        better = self._better(value)
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        return better

    def on_train_begin(self, run: Run) -> None:
        """Takes up what a resumed run has seen."""
        if not run.evaluation:
            raise JpoError(f"metric_for_best_model {self.metric}: needs evaluation data (--eval-data)")
        judged = self.metric == "eval_win_rate" and run.config.eval_judge is not None  # there once it gives a verdict
        if run.baseline and self.metric not in run.baseline and not judged:
            raise JpoError(f"metric_for_best_model: expected one of {', '.join(run.baseline)}, got {self.metric!r}")
        for value in run.history.get(self.metric, ()):
            if value is not None:
                self._meet(value)

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        """Keeps or counts."""
        value = metrics.get(self.metric)
        if value is None:  # a judge without a verdict
            return
        if self._meet(value):
            if self.keep and run.config.output:
                self._keep(run, os.path.join(run.config.output, "best"))
        elif self.patience is not None and self.waited >= self.patience:
            run.stop = True

    def _keep(self, run: Run, folder: str) -> None:
        part, old = f"{folder}.part", f"{folder}.old"
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)
        run.save(part)
        settle(part, folder, old)
        shutil.rmtree(old, ignore_errors=True)


def configured(config: TrainingConfig) -> list[Callback]:
    """What the options ask for."""
    if config.metric_for_best_model is None and config.early_stopping_patience is None:
        return []
    metric = config.metric_for_best_model or "eval_loss"
    return [Best(metric, config.early_stopping_patience, keep=config.metric_for_best_model is not None)]
