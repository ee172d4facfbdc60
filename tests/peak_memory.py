"""Peak resident memory of a block of code. ru_maxrss never falls, so that beside an earlier, larger test it says
nothing: Linux resets its own mark (VmHWM) where one asks it to."""

import contextlib
import ctypes
from pathlib import Path

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def resident(key):
    """Bytes of VmRSS or VmHWM of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


class Growth:
    """bytes: how far the peak rose above what was resident when the block began."""

    def __init__(self):
        # what earlier tests gave back to the allocator would be taken from there, and be no growth
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
        CLEAR.write_text("5")  # the peak is what is resident now
        self.before, self.bytes = resident("VmRSS"), 0

    def end(self):
        self.bytes = max(0, resident("VmHWM") - self.before)
        return self.bytes


def available():
    """Whether this system lets a process reset its own mark."""
    try:
        Growth()
    except (OSError, StopIteration):
        return False
    return True


@contextlib.contextmanager
def grown():
    """Growth, whose bytes stand after the block; skips the test where the system cannot say."""
    import pytest

    if not available():
        pytest.skip("needs Linux's /proc/self/clear_refs")
    growth = Growth()
    try:
        yield growth
    finally:
        growth.end()
