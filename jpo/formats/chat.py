"""Renders chat templates in a process of their own, bounded in time, memory and output.

A template is a program of unknown origin, and neither a thread nor a sandbox can be stopped while it multiplies
strings: a process can. It starts with the first template (some 0.1 s) and stays; a rendering then costs a round trip.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jpo.errors import JpoError, MissingExtra

SECONDS = 10.0  # for one rendering, the start of the process included
SOURCE_LIMIT = 1 << 20  # characters of a template
OUTPUT_LIMIT = 1 << 20  # characters of a rendering, beside four times its messages
_MESSAGES_LIMIT = 1 << 28  # bytes

# all that the worker inherits of the environment: no key or token of ours is within a template's reach
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

_lock = threading.Lock()
_worker: subprocess.Popen[bytes] | None = None
_owner = 0  # the process that started the worker: a forked child must start its own


def _search_path() -> list[str]:
    """Folders that hold jinja2 and markupsafe here, because the worker runs isolated from this process's path."""
    folders = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise MissingExtra(f"chat templates need the package {name}; install it with: pip install {name}")
        folders.append(os.path.dirname(os.path.dirname(os.path.abspath(spec.origin))))
    return folders


def _start() -> subprocess.Popen[bytes]:
    global _worker, _owner
    if _worker is not None and _owner == os.getpid() and _worker.poll() is None:
        return _worker
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_chat_worker.py")
    kept = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    command = [sys.executable, "-I", script, *_search_path()]
    try:
        _worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept,
            start_new_session=os.name == "posix",  # Ctrl-C is for this process alone
        )  # fmt: skip
    except OSError as error:
        raise JpoError(f"chat template: its process {command[0]!r} cannot be started: {error}") from None
    _owner = os.getpid()
    return _worker


def _stop() -> None:
    """Ends the worker; the next rendering starts another."""
    global _worker
    worker, _worker = _worker, None
    if worker is None or _owner != os.getpid():
        return
    worker.kill()
    for stream in (worker.stdin, worker.stdout):
        try:
            stream.close()  # type: ignore[union-attr]
        except OSError:  # unsent bytes to a process that is gone
            pass
    worker.wait()


def _fresh_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it when the process forked


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


def _exchange(request: bytes, longest: int) -> dict[str, Any] | None:
    """The worker's reply, or None where it ended without one."""
    worker = _start()
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(struct.pack("<I", len(request)) + request)
        worker.stdin.flush()
        head = worker.stdout.read(4)
        if len(head) < 4 or struct.unpack("<I", head)[0] > longest:
            return None
        length = struct.unpack("<I", head)[0]
        body = worker.stdout.read(length)
        return json.loads(body) if len(body) == length else None
    except (BrokenPipeError, ConnectionResetError):
        return None


def _bounded(request: bytes, longest: int) -> dict[str, Any]:
    """_exchange under the clock; whatever goes wrong ends the worker, so that no half reply is read later."""
    expired = threading.Event()

    def expire(worker: subprocess.Popen[bytes]) -> None:
        expired.set()
        worker.kill()

    timer = threading.Timer(SECONDS, expire, (_start(),))
    timer.daemon = True
    timer.start()
    try:
        reply = _exchange(request, longest)
    except BaseException:
        _stop()
        raise
    finally:
        timer.cancel()
    if reply is None:
        _stop()
        what = f"it took longer than {SECONDS:g} s" if expired.is_set() else "its process ended (out of memory?)"
        return {"error": what}
    return reply


def render(
    template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """The conversation as the template writes it.

    `variables` (bos_token, eos_token, ...) are visible to the template beside messages, add_generation_prompt, tools
    and documents (both none). JpoError where the template fails, refuses the conversation or passes a bound.
    """
    if len(template) > SOURCE_LIMIT:
        raise JpoError(f"chat template: {len(template)} characters are more than the {SOURCE_LIMIT} allowed")
    plain = [dict(message) if isinstance(message, Mapping) else message for message in messages]
    for index, message in enumerate(plain):
        if not isinstance(message, dict):
            raise JpoError(f"messages[{index}]: expected a mapping (role, content), got {type(message).__name__}")
    names = {"messages": plain, "add_generation_prompt": bool(add_generation_prompt), "tools": None, "documents": None}
    try:
        given = json.dumps({**variables, **names}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JpoError(f"messages: only what JSON holds can be given to a chat template: {error}") from None
    if len(given) > _MESSAGES_LIMIT:
        raise JpoError(f"messages: {len(given)} bytes are more than the {_MESSAGES_LIMIT} allowed")
    limit = OUTPUT_LIMIT + 4 * len(given)
    request = f'{{"template": {json.dumps(template)}, "limit": {limit}, "variables": {given}}}'.encode("ascii")
    with _lock:
        reply = _bounded(request, 12 * limit + 4096)  # a character outside the BMP is 12 bytes of JSON
    if "text" not in reply:
        raise JpoError(f"chat template: {reply.get('error')}")
    return reply["text"]
