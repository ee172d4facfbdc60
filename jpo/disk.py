"""Files and folders that stand whole or not at all: written aside, synced, renamed; and faults that name their file.

Knows names, bytes and locks; never what a file holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from jpo.errors import JpoError

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")  # as tempfile chooses the middle
_PIECE = 1 << 20  # bytes of a file that are digested at a time
# what systems answer that cannot sync a folder; any other fault is the disk's
_NO_SYNC = frozenset(
    (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)
)


def permitted(mode: int) -> int:
    """The mode that a new file or directory of `mode` would get: temporaries start private."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask


def make_folder_of(path: str | os.PathLike[str]) -> None:
    """Makes the folder that `path` will stand in, where there is none; OSError where that cannot be."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """A file's SHA-256, read piece by piece."""
    digest, piece = hashlib.sha256(), bytearray(_PIECE)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(memoryview(piece)[:count])
    return digest.hexdigest()


# ---- on disk --------------------------------------------------------------------------------------------------------


def sync_folder(folder: str) -> None:
    """Makes the names in `folder` survive a crash, where the system syncs folders; OSError naming it where the disk
    fails."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise OSError(error.errno, error.strerror, folder) from None


def _sync_file(path: str) -> None:
    with open(path, "rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None


def sync_tree(path: str) -> None:
    """The file `path`, or everything below the folder `path`, on disk."""
    if not os.path.isdir(path):
        _sync_file(path)
        return
    for folder, _, files in os.walk(path):
        for name in files:
            _sync_file(os.path.join(folder, name))
        sync_folder(folder)


def settle(part: str, path: str, old: str | None = None) -> None:
    """Renames `part`, a file or folder that is written whole, to `path`, synced before and after: a crash leaves the
    one or the other. A file at `path` is replaced; a folder that stands there is first renamed to `old`."""
    sync_tree(part)
    if old is not None and os.path.isdir(path):
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    os.replace(part, path)
    sync_folder(os.path.dirname(os.path.abspath(path)))


# ---- locks ----------------------------------------------------------------------------------------------------------


def lock(file: int | IO[Any], taken: str) -> bool:
    """Locks an open file or folder for this process until it is closed, however that ends; False on a file system
    without locks. JpoError with the text `taken` where another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JpoError(taken) from None
    except OSError:
        return False
    return True


# ---- temporaries ----------------------------------------------------------------------------------------------------


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def sweep_temporaries(folder: str, name: str | None = None) -> None:
    """Removes what killed writers left in `folder`, not below it: the temporaries of the file or folder `name`, or of
    all. Who still writes one holds its lock, and keeps it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for entry in os.listdir(folder):
            match = _TEMPORARY.fullmatch(entry)
            if match and name in (None, match[1]):
                with contextlib.suppress(OSError):  # taken, gone, or a file system without locks
                    _sweep(os.path.join(folder, entry))


def _sweep(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    finally:
        os.close(handle)


def _new(path: str, folder: bool) -> tuple[int, str]:
    """(open handle that holds its lock, name) of a new temporary beside `path`."""
    place, base = os.path.split(os.path.abspath(path))
    while True:
        prefix, suffix = f".{base}.", ".tmp"
        if folder:
            name = tempfile.mkdtemp(suffix, prefix, place)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(suffix, prefix, place)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):  # else another writer swept it before the lock was held
            return handle, name
        os.close(handle)


@contextlib.contextmanager
def temporary(path: str, folder: bool = False) -> Iterator[str]:
    """A new file, or folder, .NAME.xxxxxxxx.tmp beside `path`: gone after the block unless it was renamed. Those that
    killed writers of `path` left go first."""
    sweep_temporaries(*os.path.split(os.path.abspath(path)))
    handle, name = _new(path, folder)
    try:
        yield name
    finally:
        _remove(name)
        os.close(handle)


def write_atomic(path: str, write: Callable[[str], None]) -> None:
    """write(temporary sibling), sync, rename to `path`: readers see the old file or the whole new one."""
    with temporary(path) as aside:
        try:
            write(aside)
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise JpoError(f"{path}: cannot be written: {error}") from None  # a full disk, by safetensors' own name
        os.chmod(aside, permitted(0o666))
        settle(aside, path)


def write_text(path: str, text: str) -> None:
    """`text` as UTF-8, atomically; the folder is made where there is none."""

    def write(temporary: str) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)

    make_folder_of(path)
    write_atomic(path, write)


def write_json(path: str, value: Any) -> None:
    """`value` as indented JSON, atomically; NaN is refused because no reader is bound to take it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def aside(path: str) -> Iterator[str]:
    """The name under which `path` is written inside the block, and renamed to it at its end; what an interrupted run
    left there is found again, and a finished file keeps its own name. One writer at a time."""
    part = path if os.path.exists(path) else f"{path}.part"
    make_folder_of(path)
    with open(part, "a", encoding="utf-8") as file:
        lock(file, f"{part}: another process writes this file; wait for it, or give another name")
        yield part
    if part != path:
        settle(part, path)


# ---- faults ---------------------------------------------------------------------------------------------------------


def _own(name: object, path: str) -> bool:
    """Whether a fault's file is `path`, below it, or one that is written beside it (NAME.part, .NAME.xxxxxxxx.tmp)."""
    if not isinstance(name, str):
        return name is None
    folder, base = os.path.split(os.path.abspath(path))
    return os.path.relpath(os.path.abspath(name), folder).lstrip(".").startswith(base.lstrip("."))


@contextlib.contextmanager
def naming_faults(path: str, remedy: str) -> Iterator[None]:
    """Writing `path` inside the block: a fault of the file system becomes a JpoError that names it, with the remedy.
    Faults of other files and of the network pass."""
    try:
        yield
    except (TimeoutError, ConnectionError):
        raise
    except OSError as error:
        if not _own(error.filename, path):
            raise
        where = f" ({error.filename})" if error.filename not in (None, path) else ""
        raise JpoError(f"{path}: cannot be written: {error.strerror or error}{where}; {remedy}") from None
