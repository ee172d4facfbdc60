"""Ctrl-C, SIGTERM and SIGHUP alike: one exception that says which came and how to go on. Knows signals only."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_ASKED = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The run was asked to end by signal `number`; `hint`: what was saved and how to go on."""

    def __init__(self, number: int = signal.SIGINT, hint: str = ""):
        super().__init__(hint)
        self.number, self.hint = number, hint

    @property
    def status(self) -> int:
        """The exit status that a shell expects: 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP)."""
        return 128 + self.number

    def __str__(self) -> str:
        what = "interrupted" if self.number == signal.SIGINT else f"stopped by {signal.Signals(self.number).name}"
        return f"{what}; {self.hint}" if self.hint else what


def stopped(error: KeyboardInterrupt, hint: str = "") -> Stopped:
    """`error` as a Stopped; a hint that it already has stays."""
    own = error if isinstance(error, Stopped) else Stopped()
    return Stopped(own.number, own.hint or hint)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _raise(number: int, frame: object) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise Stopped, where nothing else was decided about them (nohup ignores
    SIGHUP, and it stays ignored)."""
    if not _main_thread():
        yield
        return
    taken = [number for number in _ASKED if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Holds these signals back until the block has ended (only the main thread gets any)."""
    if not _main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ASKED)}
    taken = {number: handler for number, handler in before.items() if callable(handler)}
    for number in taken:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
    if came:
        raise Stopped(came[0])


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Inside the block these signals only stand in the list: processes that work together stop together, at a place
    that they agree on. A signal that is ignored stays ignored."""
    came: list[int] = []
    if not _main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ASKED)}
    taken = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
