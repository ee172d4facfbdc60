"""What a study shows while it runs: a bar over all stages on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


class Display:
    """Progress of stages and within them; silent where `show` is false."""

    def __init__(self, show: bool):
        self._show = show
        self._bar: Any = None
        self._outer: Any = None
        self._inner: Any = None
        self._total = 0

    @contextlib.contextmanager
    def shown(self, total: int) -> Iterator[None]:
        """The display of `total` stages stands during the block."""
        self._total = total
        if not (self._show and sys.stderr.isatty()):
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as self._bar:
            self._outer = self._bar.add_task("stages", total=total)
            self._inner = self._bar.add_task("", total=None)
            yield
        self._bar = None

    def skipped(self, number: int) -> None:
        """The stage was done before."""
        if self._bar:
            self._bar.update(self._outer, completed=number)

    def begin(self, number: int, name: str) -> None:
        """A stage starts."""
        if self._bar:
            self._bar.update(self._outer, completed=number - 1, description=name)
            self._bar.reset(self._inner, total=None, description="")

    def inner(self, done: int, total: int | None, what: str) -> None:
        """Progress within the stage."""
        if self._bar:
            self._bar.update(self._inner, completed=done, total=total, description=what)

    def end(self, number: int, name: str, seconds: float) -> None:
        """The stage is done."""
        if self._bar:
            self._bar.update(self._outer, completed=number)
        elif self._show:
            print(f"[{number}/{self._total}] {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
