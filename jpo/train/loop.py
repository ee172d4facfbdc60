"""The loop: steps, schedule, metrics, checkpoints, interruption. Loss and batches come from the trainer outside."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jpo.disk import naming_faults, sync_folder
from jpo.errors import JpoError
from jpo.export.card import write_card
from jpo.interrupts import Stopped, held, noted, stopped
from jpo.model import LanguageModel
from jpo.parallel.team import Team
from jpo.train import checkpoint
from jpo.train.callbacks import Callback, Run
from jpo.train.config import TrainingConfig
from jpo.train.drawing import dismiss, serve
from jpo.train.optimizer import learning_rate
from jpo.train.sharded import ShardedAdamW, optimizer_of

_FREE_ON_RESUME = {
    "output",
    "steps",
    "epochs",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "metric_for_best_model",
    "early_stopping_patience",
    "eval_samples",
    "eval_temperature",
    "eval_max_new_tokens",
    "eval_judge",
    "eval_judge_model",
    "eval_judge_base_url",
    "eval_against",
    "report_to",
    "tensorboard",
    "token_budget",
    "gradient_checkpointing",
    "template",  # the tokens say it all, whatever it was called then
    "check_memory",
    "cache_dir",  # a place where tokens are kept, which are the same without it
    "ref_logps",  # a place where numbers are kept, which are the same without it
}
_ADAPTER = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern", "exclude_modules",
    "layers_to_transform", "use_dora", "bias", "modules_to_save",
}  # fmt: skip
_FORMAT = 2  # of trainer_state.json; 1 (no key) held the config's adapter fields even where the model brought its own


class Task(Protocol):
    """What a trainer gives the loop."""

    @property
    def unit(self) -> str:
        """What a step is made of: "pairs" or "examples"."""

    @property
    def sizes(self) -> tuple[int, Mapping[str, int]]:
        """Records for training, and those of each evaluation set."""

    def seconds(self, indices: Sequence[int]) -> float:
        """Seconds that a step over these records takes, estimated from a part of it."""

    def step(self, indices: Sequence[int], step: int) -> dict[str, float]:
        """Add the step's gradients; its metrics."""

    def evaluate(self) -> dict[str, float]:
        """Metrics on the evaluation set, eval_ prefix; {} without one."""

    def save(self, folder: str) -> None:
        """Write the model or adapter."""

    def card(self, history: Mapping[str, Sequence[Any]], baseline: Mapping[str, float]) -> str:
        """The model card of a finished run."""


def fingerprint(config: TrainingConfig, data: str, order: Any) -> dict[str, str]:
    """What must not change between a run and its resumption. data: the records' digest; order: how they are shuffled is
    named where it is not the way of all earlier versions."""
    kept = {key: value for key, value in config.to_dict().items() if key not in _FREE_ON_RESUME}
    way = {} if order.way == "argsort" else {"order": order.way}
    return {"data": data} | way | {key: json.dumps(value) for key, value in kept.items()}


class Loop:
    """Runs `total` optimizer steps of a task over an order of data. Over ranks every one runs it; the first alone
    reads and writes files, calls callbacks and decides, and all stop at the same step."""

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        config: TrainingConfig,
        order: Any,
        total: int,
        warmup: int,
        mark: dict[str, str],
        team: Team | None = None,
    ):
        assert lm.trainable is not None
        self.lm, self.task, self.config, self.order = lm, task, config, order
        self.total, self.warmup, self.mark = total, warmup, mark
        self.team = team or Team()
        self.optimizer = optimizer_of(lm.trainable.params, config, self.team)
        self.tokens = 0
        self.history: dict[str, list[Any]] = {}
        self.baseline: dict[str, float] = {}
        self._metrics: checkpoint.MetricsFile | None = None
        self._callbacks: Sequence[Callback] = ()
        self._signals: list[int] = []  # that came while ranks work together

    def run(self, resume: bool, callbacks: Sequence[Callback] = ()) -> dict[str, list[Any]]:
        """Train to the end; an interrupt (Stopped, a KeyboardInterrupt) leaves a checkpoint of the last whole step."""
        output = self.config.output
        if resume and not output:
            raise JpoError("resume needs the run's output directory")
        together = self.team.ranks.size > 1
        self._callbacks = callbacks = callbacks if self.team.root else ()
        with contextlib.ExitStack() as stack:
            if together:
                self._signals = stack.enter_context(noted())
            if output and self.team.root:
                stack.enter_context(checkpoint.locked(output))
            first = self._start(resume)
            watched = self._watched(first)
            try:
                if not first:
                    watched.baseline = self.baseline = self.task.evaluate() | self._measured(watched)
                for callback in callbacks:
                    callback.on_train_begin(watched)
                self._steps(first, watched)
                self._finish()
            finally:
                if self._metrics:
                    self._metrics.close()
                for callback in callbacks:
                    callback.on_train_end(watched)
        return dict(self.history)

    def _steps(self, first: int, watched: Run) -> None:
        assert self.lm.trainable is not None
        self.lm.trainable.grads[:] = 0
        done, before = first, time.perf_counter()
        try:
            for step in range(first, self.total):
                metrics = self.task.step(self.order.batch(step), step)
                with self._whole():  # parameters, counter and metrics move together
                    row = self._update(metrics, step)
                    watched.step = done = step + 1
                    now = time.perf_counter()
                    row["step_seconds"], before = now - before, now
                    evaluate = self.config.eval_steps and done % self.config.eval_steps == 0 or done == self.total
                    if not evaluate:
                        self._record(row, watched)
                if evaluate:
                    self._evaluate(row, watched)
                self._agree(watched)
                if watched.stop:
                    break
                if self.config.save_steps and done % self.config.save_steps == 0 and done < self.total:
                    self._save(done, watched)
        except KeyboardInterrupt as stop:
            self.lm.trainable.grads[:] = 0
            raise self._interrupted(stop, done, first, watched) from None

    def _whole(self) -> contextlib.AbstractContextManager[None]:
        """No signal ends what stands inside the block halfway."""
        return held() if self.team.ranks.size == 1 else contextlib.nullcontext()

    def _agree(self, watched: Run) -> None:
        """Ranks stop where one of them was asked to, and where a callback of the first one says so."""
        if self.team.ranks.size == 1:
            return
        signal, stop = self.team.agree(self._signals[0] if self._signals else 0, int(watched.stop))
        watched.stop = bool(stop)
        if signal:
            self.team.ranks.parting = True
            raise Stopped(signal)

    def _interrupted(self, stop: KeyboardInterrupt, done: int, first: int, watched: Run) -> KeyboardInterrupt:
        """Saves the last whole step, deaf to a second signal, and says how to go on."""
        output = self.config.output
        if not output:
            return stopped(stop, "nothing was saved, because the run has no output directory")
        if done == 0:
            return stopped(stop, "no step was done yet")
        with contextlib.suppress(KeyboardInterrupt), held():
            if done > first:
                self._save(done, watched)
        return stopped(stop, f"step {done} of {self.total} is saved: go on with --resume --output {output}")

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

    def _evaluate(self, row: dict[str, Any], watched: Run) -> None:
        metrics: dict[str, float] = {}
        try:
            metrics = self.task.evaluate() | self._measured(watched)
        finally:  # an interrupt of the evaluation leaves the step's own line
            row |= metrics
            self._record(row, watched)
        if metrics:
            for callback in self._callbacks:
                callback.on_evaluate(watched, metrics)

    def _measured(self, watched: Run) -> dict[str, float]:
        """What callbacks add to an evaluation; the other ranks draw samples for those of the first."""
        if not self.team.root:
            serve(self.lm, self.team)
            return {}
        found = {key: value for callback in self._callbacks for key, value in callback.measure(watched).items()}
        if watched.samples:
            for callback in self._callbacks:
                callback.on_samples(watched, watched.samples)
            watched.samples = []
        dismiss(self.team)
        return found

    def _record(self, row: dict[str, Any], watched: Run) -> None:
        self._remember(row)
        if self._metrics:
            self._metrics.write(row)
        for callback in self._callbacks:
            callback.on_log(watched, row)

    def _remember(self, row: dict[str, Any]) -> None:
        rows = len(self.history.get("step", ()))
        for key in dict.fromkeys([*row, *self.history]):  # columns stay of one length: a DataFrame
            self.history.setdefault(key, [None] * rows).append(row.get(key))

    def _watched(self, first: int) -> Run:
        training, evaluation = self.task.sizes
        return Run(
            self.config,
            self.total,
            self.order.steps_per_epoch,
            self.warmup,
            self.task.unit,
            training,
            evaluation,
            self.history,
            lambda: self.task.seconds(self.order.batch(first)),
            self.task.save,
            first=first,
            step=first,
            baseline=self.baseline,
        )

    def _start(self, resume: bool) -> int:
        """Steps that are done already; opens metrics.jsonl."""
        if not self.config.output:
            return 0
        ranks = self.team.ranks
        found = self._found(resume) if self.team.root else None
        known = None
        if found is not None:
            state = found[2]
            known = (state["step"], state["num_tokens"], state.get("baseline") or {}, self.warmup, self.order.way)
        known = ranks.bcast(known)
        if known is None:
            return 0
        step, self.tokens, self.baseline, self.warmup, self.order.way = known
        self.optimizer.load({} if found is None else found[1], step)
        for row in ranks.bcast(None if self._metrics is None else self._metrics.open(step)):
            self._remember(row)
        if self.team.root:
            checkpoint.sweep(self.config.output)
        return int(step)

    def _found(self, resume: bool) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
        """The checkpoint to go on from, checked; without one metrics.jsonl is begun."""
        output = self.config.output
        assert output and self.lm.trainable is not None
        if not resume:
            checkpoint.refuse_used(output)
        self._metrics = checkpoint.MetricsFile(output)
        found = checkpoint.load_newest(output, self.lm.trainable.params.size, _say) if resume else None
        if found is None:
            if resume:
                _say(f"{output}: no finished checkpoint to resume from; starting anew")
            self._metrics.open(0)
            return None
        folder, _, state = found
        self._check_mark(folder, state)
        if state["step"] > self.total:
            raise JpoError(
                f"{folder} is at step {state['step']}, beyond the {self.total} that are asked for; ask for more steps, or "
                "start anew in another output"
            )
        return found

    def _check_mark(self, folder: str, state: Mapping[str, Any]) -> None:
        """JpoError where the options or the data are not those of the checkpoint's run."""
        stored = {key: value for key, value in state["mark"].items() if key not in _FREE_ON_RESUME}
        free = set()
        if "format" not in state:
            free |= _ADAPTER
            if self.mark.get("warmup_steps") == "null" and stored.get("warmup_steps", "null") != "null":
                free.add("warmup_steps")  # the default of that time was a number
                self.warmup = int(stored["warmup_steps"]) or self.warmup
        if "order" in self.mark and "order" not in stored:
            self.order.way = "argsort"  # the only one of that time, whatever the number of records
            self.mark = {key: value for key, value in self.mark.items() if key != "order"}
        # an option that a run of an earlier version did not know has no part in the comparison
        changed = sorted(key for key in stored.keys() - free if self.mark.get(key) != stored[key])
        if changed:
            raise JpoError(
                f"{folder}: cannot resume, because {', '.join(changed)} changed since; give the same options and data"
            )

    def _save(self, step: int, watched: Run) -> None:
        """A checkpoint: the first rank writes, the others give their parts of the optimizer's state."""
        output = self.config.output
        if not output:
            return
        if not self.team.root:
            if self.team.ranks.bcast(None) and isinstance(self.optimizer, ShardedAdamW):
                self.optimizer.give_state()
            return
        assert self._metrics is not None
        self.team.ranks.bcast(not checkpoint.stands(output, step))
        self._metrics.sync()
        state = {"format": _FORMAT, "step": step, "num_tokens": self.tokens, "mark": self.mark}
        if self.baseline:
            state["baseline"] = self.baseline
        folder = checkpoint.save(output, step, self.task.save, self.optimizer.state(), state)
        checkpoint.prune(output, self.config.save_total_limit, step)
        for callback in self._callbacks:
            callback.on_save(watched, folder)

    def _finish(self) -> None:
        output = self.config.output
        if output and self.team.root:
            with naming_faults(output, "mend this and go on with --resume"):
                self.task.save(output)
                if not write_card(output, self.task.card(self.history, self.baseline)):
                    _say(f"{output}: its README.md is not jpo's and stays as it is")
                sync_folder(output)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
