"""A process of its own for what came with a downloaded model and may never end: bounded in time, memory and output.

Neither a thread nor a sandbox can be stopped while it multiplies strings or backtracks; a process can. It starts with
the first request (some 0.1 s) and stays; a request then costs a round trip. Knows scripts and messages; never templates
or tokenizers (chat.py, bounded_tokens.py).
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from typing import Any

from jpo.errors import JpoError, MissingExtra

# all that a worker inherits of the environment: no key or token of ours is within its reach
_INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "SYSTEMROOT",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)
_LOOP = "_worker_loop.py"
_HEAD = struct.Struct("<Id")  # of a request: bytes that follow, seconds of processor time that it may take
_PATIENCE = 6  # the clock's limit, in limits of processor time: a busy machine is no fault of the request
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """One script beside this file, run isolated by _worker_loop.py; requests and replies are JSON behind their
    length."""

    def __init__(self, what: str, script: str, packages: tuple[str, ...]):
        self.what, self.script, self.packages = what, script, packages
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started the worker: a forked child must start its own
        _workers.add(self)

    def _search_path(self) -> list[str]:
        """Folders that hold the packages here, because the worker runs isolated from this process's path."""
        folders = []
        for name in self.packages:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:
                raise MissingExtra(f"{self.what}s need the package {name}; install it with: pip install {name}")
            folders.append(os.path.dirname(os.path.dirname(os.path.abspath(spec.origin))))
        return folders

    def start(self) -> subprocess.Popen[bytes]:
        """The running process; another one where it has ended or belongs to the parent of this process."""
        if self.process is not None and self._owner == os.getpid() and self.process.poll() is None:
            return self.process
        loop, script = (os.path.join(os.path.dirname(os.path.abspath(__file__)), name) for name in (_LOOP, self.script))
        kept = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        command = [sys.executable, "-I", loop, script, *self._search_path()]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept,
                start_new_session=os.name == "posix",  # Ctrl-C is for this process alone
            )  # fmt: skip
        except OSError as error:
            raise JpoError(f"{self.what}: its process {command[0]!r} cannot be started: {error}") from None
        self._owner = os.getpid()
        return self.process

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        process, self.process = self.process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            try:
                stream.close()  # type: ignore[union-attr]
            except OSError:  # unsent bytes to a process that is gone
                pass
        process.wait()

    def _exchange(self, request: bytes, longest: int, seconds: float) -> dict[str, Any] | None:
        """The reply, or None where the process ended without one or a longer one came."""
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(_HEAD.pack(len(request), seconds) + request)
            process.stdin.flush()
            head = process.stdout.read(4)
            if len(head) < 4 or struct.unpack("<I", head)[0] > longest:
                return None
            length = struct.unpack("<I", head)[0]
            body = process.stdout.read(length)
            return json.loads(body) if len(body) == length else None
        except (BrokenPipeError, ConnectionResetError):
            return None

    def _end(self, seconds: float, expired: bool) -> str:
        """Why a request was not answered; ends what is left of the process."""
        process = self.process
        self.stop()
        if expired:
            return f"it took longer than {_PATIENCE * seconds:g} s"
        if process is not None and process.returncode == -getattr(signal, "SIGPROF", 0):
            return f"it took longer than {seconds:g} s of processor time"
        return "its process ended (out of memory?)"

    def ask(self, request: bytes, longest: int, seconds: float) -> dict[str, Any]:
        """The reply of at most `longest` bytes within `seconds` of processor time, or {"error": ...}, with "ended"
        where it was the process that ended. Hold self.lock.

        By the clock, the start included, it may take _PATIENCE times as long. Whatever goes wrong ends the process, so
        that no half reply is read later; Ctrl-C ends it at once."""
        expired = threading.Event()

        def expire(process: subprocess.Popen[bytes]) -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(_PATIENCE * seconds, expire, (self.start(),))
        timer.daemon = True
        timer.start()
        try:
            reply = self._exchange(request, longest, seconds)
        except BaseException:
            self.stop()
            raise
        finally:
            timer.cancel()
        if reply is None:
            return {"error": self._end(seconds, expired.is_set()), "ended": True}
        return reply


@atexit.register
def _stop_all() -> None:
    for worker in list(_workers):
        worker.stop()


def _fresh_locks() -> None:
    for worker in list(_workers):
        worker.lock = threading.Lock()  # another thread may have held it when the process forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_locks)
