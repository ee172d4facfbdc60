"""One contestant in a process of its own: started by runner.py, told each turn over stdin, answering in JSON lines.

python -m tests.benchmarks.turns FUNCTION WORK.json OPTIONS.json
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from .contestants import LeftOut


def peak_gigabytes() -> float:
    """This process's peak resident memory (VmHWM)."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e9


class Turns:
    """The contestant's side of the protocol: begin() waits for the next turn, end() reports it."""

    def __init__(self, reply: Any):
        self._reply, self._ready, self._start = reply, False, 0.0

    def say(self, **message: Any) -> None:
        """One JSON line to the runner."""
        self._reply.write(json.dumps(message) + "\n")
        self._reply.flush()

    def begin(self) -> int | None:
        """The number of the turn (0 is the warm-up), or None when there are no more."""
        if not self._ready:
            self.say(ready=True)
            self._ready = True
        line = sys.stdin.readline().strip()
        if not line or line == "stop":
            return None
        self._start = time.perf_counter()
        return int(line)

    def end(self, seconds: float | None = None, **figures: Any) -> None:
        """The turn is over; its wall time is measured unless `seconds` says what counts."""
        elapsed = time.perf_counter() - self._start
        self.say(seconds=elapsed if seconds is None else seconds, peak_gb=peak_gigabytes(), **figures)

    def loop(self, repetition: Callable[[int], dict[str, Any] | None]) -> None:
        """repetition(turn) once for each turn; what it returns is reported (seconds included, where it gives them)."""
        while (turn := self.begin()) is not None:
            self.end(**(repetition(turn) or {}))


def main() -> None:
    """Run the contestant; its prints go to stderr, so that stdout carries the protocol alone."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, function, work_file, options = sys.argv[1:]
    turns = Turns(reply)
    with open(work_file, encoding="utf-8") as file:
        work = json.load(file)
    try:
        getattr(importlib.import_module(module), function)(work, turns, **json.loads(options))
    except LeftOut as reason:
        turns.say(left_out=str(reason))
    except Exception as error:  # reported beside the others' figures, which stay valid
        traceback.print_exc()
        turns.say(failed=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


if __name__ == "__main__":
    main()
