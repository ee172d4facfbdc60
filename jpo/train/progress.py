"""What is shown while training: a bar on a terminal, a line now and then in a log file.

Knows rows of metrics only; never models.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from jpo.train.callbacks import Callback, Callbacks, Row, Run, as_callbacks, configured
from jpo.train.config import DEFAULT_STEPS
from jpo.train.optimizer import learning_rate
from jpo.train.reports import reporters
from jpo.train.samples import Samples

_EVERY, _SHARE = 30.0, 0.05  # a line in a log file after so many seconds, or such a share of the run
_LOW_FOR_ADAPTERS = 5e-6  # adapters are trained at 1e-5 to 5e-4
_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


@contextlib.contextmanager
def hidden_bar() -> Iterator[None]:
    """Nothing of a trainer's own is shown inside the block: the caller (a study) shows one bar for all that it runs."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


def make_callbacks(given: Callbacks | None, trainer: Any) -> list[Callback]:
    """The user's callbacks, those of the trainer's options, what shows the run and what reports it elsewhere."""
    config = trainer.config
    active = as_callbacks(given) + configured(config) + reporters(config)
    if config.eval_samples:
        active.append(Samples(trainer.lm, trainer.asked, config, lambda: trainer.team))
    if not _hidden.get():
        notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets")  # rich draws through it there
        active.append(Bar() if sys.stderr.isatty() or notebook else Log())
    return active


# ---- sentences ------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """0.034 s, 2.1 s, 34 s, 4 min 31 s, 2 h 5 min."""
    if 0 < seconds < 0.1:
        return f"{seconds:.2g} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def header(run: Run) -> list[str]:
    """The first line (records, steps, time), what evaluation says before training, and warnings."""
    c = run.config
    sets = {name: count for name, count in run.evaluation.items() if count}
    named = ", ".join(f"{count} ({name})" if name else f"{count}" for name, count in sets.items())
    steps = f"{run.total - run.first} of {run.total} steps" if run.first else f"{run.total} steps"
    epochs = f"{run.total / run.steps_per_epoch:.3g} epoch" + ("s" if run.total != run.steps_per_epoch else "")
    chosen = ""
    if c.steps is None and c.epochs is None and run.unit == "pairs":
        chosen = f" (the default: one epoch or {DEFAULT_STEPS} steps, whichever is less; see --steps and --epochs)"
    lines = [
        f"{run.training} {run.unit} for training, {named or 'none'} for evaluation; "
        f"{steps} of {min(c.batch_size, run.training)} {run.unit} = {epochs}{chosen}; "
        f"about {duration(run.seconds_per_step() * (run.total - run.first))}"
    ]
    if run.baseline and not run.first:
        lines.append(f"before training: {evaluated(run.baseline, {})}")
    return lines + [f"warning: {text}" for text in low_rates(run)]


def low_rates(run: Run) -> list[str]:
    """Warnings of a learning rate that stays near zero for the whole run."""
    c = run.config
    peak = max(learning_rate(c, step, run.total, run.warmup) for step in _some(run.total, run.warmup))
    if c.learning_rate == 0:
        return ["learning_rate is 0: nothing will be learned"]
    if peak < 0.5 * c.learning_rate:
        return [
            f"the learning rate stays below {peak:.2g} of {c.learning_rate:g}, because warm-up takes {run.warmup} of "
            f"{run.total} steps; give a smaller --warmup-steps or more steps"
        ]
    if c.learning_rate < _LOW_FOR_ADAPTERS and not getattr(c, "full", False):
        return [f"learning_rate {c.learning_rate:g} is low for an adapter, which hardly moves; 1e-5 to 5e-4 is usual"]
    return []


def _some(total: int, warmup: int) -> list[int]:
    """Steps at which the rate may be largest."""
    return [step for step in {0, min(warmup, total - 1), min(warmup + 1, total - 1), total - 1} if step >= 0]


def evaluated(metrics: dict[str, float], start: dict[str, float]) -> str:
    """loss, accuracy and margin of each evaluation set, with the change since the start where that is known."""
    sets: dict[str, None] = {
        key.removeprefix("eval_").removesuffix("loss"): None for key in metrics if key.endswith("loss")
    }
    told = [_one_set(name, metrics, start) for name in sets]
    if "eval_win_rate" in metrics:
        told.append(_one_value("eval_win_rate", _WINS, metrics, start))
    return "; ".join(told)


# metric -> word, factor, digits, unit, with a sign
_SHOWN = {
    "loss": ("loss", 1, 4, "", False),
    "rewards/accuracies": ("accuracy", 100, 1, " %", False),
    "rewards/margins": ("margin", 1, 4, "", True),
    "mean_token_accuracy": ("token accuracy", 100, 1, " %", False),
}
_WINS = ("win-rate", 100, 1, " %", False)
_SHOWN_OF_A_SAMPLE = 100  # characters


def _one_value(
    key: str, form: tuple[str, int, int, str, bool], metrics: dict[str, float], start: dict[str, float]
) -> str:
    word, factor, digits, unit, signed = form
    change = f" ({factor * (metrics[key] - start[key]):+.{digits}f})" if key in start else ""
    return f"{word} {factor * metrics[key]:{'+' if signed else ''}.{digits}f}{unit}{change}"


def _one_set(name: str, metrics: dict[str, float], start: dict[str, float]) -> str:
    parts = []
    pairs = f"eval_{name}rewards/margins" in metrics
    for key, form in _SHOWN.items():
        full = f"eval_{name}{key}"
        if full in metrics and not (pairs and key == "mean_token_accuracy"):
            parts.append(_one_value(full, form, metrics, start))
    return (f"{name.rstrip('_')}: " if name else "") + ", ".join(parts)


# ---- where it is shown ----------------------------------------------------------------------------------------------


class _Shown(Callback):
    """What the bar and the log share: the pace of the run, and its sentences through say()."""

    def __init__(self) -> None:
        self.tokens = self.seconds = self.begun = self.now = 0.0

    def say(self, text: str) -> None:
        """One line for the user."""
        print(text, file=sys.stderr, flush=True)

    def on_train_begin(self, run: Run) -> None:
        for line in header(run):
            self.say(line)
        tokens = run.history.get("num_tokens")
        self.tokens = tokens[-1] if tokens else 0
        self.begun = time.monotonic()

    def pace(self, run: Run, row: Row) -> tuple[str, float]:
        """(loss, margin and tokens/s of the row as text, seconds left)."""
        speed = (row["num_tokens"] - self.tokens) / max(row["step_seconds"], 1e-9)
        self.tokens = row["num_tokens"]
        margin = f", margin {row['rewards/margins']:+.4f}" if "rewards/margins" in row else ""
        per_step = (time.monotonic() - self.begun) / max(1, run.step - run.first)
        return f"loss {row['loss']:.4f}{margin}, {speed:.0f} tokens/s", per_step * (run.total - run.step)

    def on_samples(self, run: Run, rows: list[Row]) -> None:
        row = rows[0]
        asked, answered = (
            text if len(text) <= _SHOWN_OF_A_SAMPLE else f"{text[:_SHOWN_OF_A_SAMPLE]} ..."
            for text in (" ".join(str(row[key]).split()) for key in ("instruction", "output"))
        )
        self.say(f"sample at step {row['step']}: {asked!r} -> {answered!r}")

    def on_evaluate(self, run: Run, metrics: dict[str, float]) -> None:
        since = "; in brackets: since the start" if run.baseline else ""
        self.say(f"evaluation at step {run.step}: {evaluated(metrics, run.baseline)}{since}")


class Log(_Shown):
    """A line of text every 30 seconds or 5 % of the run, whichever comes first; the first and the last step always."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.mark = float("-inf"), 0

    def on_log(self, run: Run, row: Row) -> None:
        text, left = self.pace(run, row)
        now, mark = time.monotonic(), int(run.step / run.total / _SHARE + 1e-9)
        if now - self.last >= _EVERY or mark > self.mark or run.step == run.total:
            self.last, self.mark = now, mark
            share = f"{100 * run.step / run.total:.0f} %"
            self.say(f"step {run.step}/{run.total} ({share}): {text}, {duration(left)} left")


class Bar(_Shown):
    """A bar with step, loss, margin, tokens/s and time left; sentences stand above it."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self.console = Console(stderr=True, highlight=False)
        self.progress: Any = None
        self.task: Any = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)  # lines break between words

    def on_train_begin(self, run: Run) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        super().on_train_begin(run)
        columns = (MofNCompleteColumn(), BarColumn(bar_width=16), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=self.console)
        self.task = self.progress.add_task("the first step is computed", total=run.total, completed=run.first)
        self.progress.start()

    def on_log(self, run: Run, row: Row) -> None:
        text, left = self.pace(run, row)
        self.progress.update(self.task, completed=run.step, description=f"{text}, {duration(left)} left")

    def on_train_end(self, run: Run) -> None:
        if self.progress is not None:
            self.progress.stop()
