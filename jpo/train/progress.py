"""What is shown while training: a progress bar on a terminal, TensorBoard where asked. Knows rows of metrics only."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from jpo.errors import MissingExtra
from jpo.train.config import TrainingConfig

Callback = Callable[[dict[str, Any]], None]
_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


@contextlib.contextmanager
def hidden_bar() -> Iterator[None]:
    """No bar of a trainer's own inside the block: the caller (a study) shows one for all that it runs."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


@contextlib.contextmanager
def make_callbacks(given: Sequence[Callback] | None, total: int, config: TrainingConfig) -> Iterator[list[Callback]]:
    """The user's callbacks, the bar and TensorBoard's writer; closed at the end, however it comes."""
    with contextlib.ExitStack() as stack:
        active = list(given or [])
        notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets")  # rich draws through it there
        if (sys.stderr.isatty() or notebook) and not _hidden.get():
            active.append(stack.enter_context(_bar(total)))
        if config.tensorboard:
            active.append(stack.enter_context(_tensorboard(config)))
        yield active


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callback]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        seen = [0]

        def show(row: dict[str, Any]) -> None:
            speed = (row["num_tokens"] - seen[0]) / max(row["step_seconds"], 1e-9)
            seen[0] = row["num_tokens"]
            margin = f"  margin {row['rewards/margins']:+.3f}" if "rewards/margins" in row else ""
            progress.update(
                task, completed=row["step"], description=f"loss {row['loss']:.4f}{margin}  {speed:.0f} tokens/s"
            )

        yield show


@contextlib.contextmanager
def _tensorboard(config: TrainingConfig) -> Iterator[Callback]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise MissingExtra("TensorBoard events need tensorboardX: pip install 'jpo[tensorboard]'") from None
    writer = SummaryWriter(os.path.join(config.output or ".", "tensorboard"))
    try:
        yield lambda row: [
            writer.add_scalar(key, value, row["step"]) for key, value in row.items() if value is not None
        ]
    finally:
        writer.close()
