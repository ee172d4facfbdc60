"""Runs a case: every contestant in its own process, turn about (A B A B), so that a drifting machine meets all alike.

Processes stay alive side by side as far as memory allows; where it does not, the peers come in waves, and jpo and the
yardstick run in each wave anew, so that every ratio is between neighbours in time. The slowest peers get fewer turns.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contestants import Entry
from .machine import available_gigabytes, child_environment, tcmalloc, versions

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0  # seconds for set-up or one turn


@dataclass
class Settings:
    """How long to measure. A contestant whose turn takes long gets as many turns as fit `seconds`, at least one."""

    rounds: int = 5
    seconds: float = 60.0
    hasty: bool = False  # a warm-up of more than twice `seconds` counts as the contestant's one turn
    folder: Path = Path(".")
    say: Callable[[str], None] = print


@dataclass
class Outcome:
    """What one entry gave: a list of what its process reported each turn, the warm-up left out."""

    label: str
    turns: list[dict[str, Any]] = field(default_factory=list)
    warm_seconds: float | None = None
    peak_gb: float | None = None
    note: str = ""
    versions: dict[str, str] = field(default_factory=dict)


class Process:
    """A contestant's process (see turns.py)."""

    def __init__(self, entry: Entry, work_file: Path, settings: Settings):
        self.entry, self.outcome = entry, Outcome(entry.label, versions=versions(entry.contestant.needs))
        name = re.sub(r"\W+", "-", f"{work_file.stem}-{entry.label}")
        self._log = open(settings.folder / f"{name}.log", "w", encoding="utf-8")  # closed in stop
        run = entry.contestant.run
        module = "tests." + run.__module__.removeprefix("tests.")  # pytest imports it without the prefix
        options = json.dumps(dict(entry.variant.options))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.turns", module, run.__name__, str(work_file), options],
            cwd=ROOT,
            env=child_environment(entry.variant.allocator),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._buffer = b""
        self.alive = True

    def hear(self) -> dict[str, Any]:
        """The next message; one with left_out or failed ends the process."""
        message = self._read()
        reason = message.get("left_out") or message.get("failed")
        if reason:
            self.outcome.note = reason if "left_out" in message else f"failed: {reason} (see {self._log.name})"
            self.stop()
        return message

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return {"failed": f"no answer within {PATIENCE:.0f} s"}
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                return {"failed": f"the process ended with status {self._process.wait()}"}
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return dict(json.loads(line))

    def turn(self, number: int) -> dict[str, Any] | None:
        """One repetition; None where the contestant has dropped out."""
        if not self.alive:
            return None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{number}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the next message says why
        message = self.hear()
        if not self.alive:
            return None
        self.outcome.peak_gb = message["peak_gb"]
        return message

    def stop(self) -> None:
        """End the process."""
        if not self.alive:
            return
        self.alive = False
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._log.close()


def excuse(entry: Entry) -> str:
    """Why an entry cannot start here, or ""."""
    if missing := entry.contestant.missing():
        return f"not installed: {', '.join(missing)}"
    if entry.variant.allocator == "tcmalloc" and tcmalloc() is None:
        return "tcmalloc is not installed (Debian: apt-get install libtcmalloc-minimal4)"
    return ""


def waves(entries: list[Entry], room: float) -> Iterator[list[Entry]]:
    """Peers grouped so that their processes fit `room` GB together; one that alone exceeds it runs alone."""
    group: list[Entry] = []
    for entry in sorted(entries, key=lambda one: one.contestant.gigabytes):
        if group and sum(one.contestant.gigabytes for one in [*group, entry]) > room:
            yield group
            group = []
        group.append(entry)
    yield group  # may be empty: jpo runs without peers too


def turns_allowed(settings: Settings, warm_seconds: float) -> int:
    """Turns after a warm-up that took so long."""
    return max(1, min(settings.rounds, int(settings.seconds / max(warm_seconds, 1e-9))))


def run_case(
    name: str,
    work: dict[str, Any],
    entries: list[Entry],
    yardstick: Entry,
    settings: Settings,
    compared: Callable[[str, str], bool] = lambda ours, peer: True,
) -> list[Any]:
    """Outcomes of the case, the yardstick's first. Each turn carries its wave, so that ratios pair neighbours; behind
    the first wave only those of ours run anew that are compared(ours, peer) with a peer of the wave."""
    work_file = settings.folder / f"{name}.json"
    work_file.write_text(json.dumps(work), encoding="utf-8")
    outcomes: dict[str, Outcome] = {}
    able = []
    for entry in entries:
        if reason := excuse(entry):
            outcomes[entry.label] = Outcome(entry.label, note=reason)
        else:
            able.append(entry)
    ours = [entry for entry in able if entry.ours]
    own = sum(entry.contestant.gigabytes for entry in ours)
    peers = [entry for entry in able if not entry.ours]
    for wave, group in enumerate(waves(peers, 0.85 * available_gigabytes() - own)):
        own_now = [one for one in ours if not wave or any(compared(one.label, peer.label) for peer in group)]
        for outcome in _run_wave([yardstick, *own_now, *group], wave, work_file, settings, work.get("warm", True)):
            if outcome.label not in outcomes:
                outcomes[outcome.label] = outcome
            else:
                outcomes[outcome.label].turns += outcome.turns
    order = [yardstick.label, *(entry.label for entry in entries)]
    return [outcomes[label] for label in order if label in outcomes]


def _run_wave(group: list[Entry], wave: int, work_file: Path, settings: Settings, warm: bool) -> list[Outcome]:
    processes = [Process(entry, work_file, settings) for entry in group]
    try:
        for process in processes:
            process.hear()
        allowed = {id(process): _warm_up(process, wave, settings) if warm else 1 for process in processes}
        allowed[id(processes[0])] = settings.rounds  # the yardstick, as long as anybody runs
        for number in range(1, settings.rounds + 1):
            for process in processes:
                if number > allowed[id(process)]:
                    process.stop()
                elif message := process.turn(number):
                    process.outcome.turns.append({**message, "turn": number, "wave": wave})
                    settings.say(f"    {process.outcome.label}: turn {number}, {message['seconds']:.3g} s")
            if not any(process.alive for process in processes[1:]):
                break
    finally:
        for process in processes:
            process.stop()
    return [process.outcome for process in processes]


def _warm_up(process: Process, wave: int, settings: Settings) -> int:
    """The first turn, which does not count, and how many may follow."""
    message = process.turn(0)
    if message is None:
        return 0
    seconds = process.outcome.warm_seconds = float(message["seconds"])
    settings.say(f"    {process.outcome.label}: warm-up, {seconds:.3g} s")
    if settings.hasty and seconds > 2 * settings.seconds:
        process.outcome.turns.append({**message, "turn": 0, "wave": wave})
        process.outcome.note = "its warm-up is the one turn"
        return 0
    return turns_allowed(settings, seconds)
