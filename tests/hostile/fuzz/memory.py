"""How far a case lets this process grow."""

import os
import resource

from tests.peak_memory import Growth, available, resident

NEAR = 8 << 20  # bytes


class Mark:
    """Growth of one case after the other, above a floor: what was resident when memory was last given back.

    To give it back and to reset Linux's own mark costs half a millisecond, as much as a quick case. Both are done where
    the mark stands, or what is resident fell, by more than NEAR from the floor; else a look at the mark is enough. The
    floor lies below what a case began with, or NEAR above at most: growths are told to within NEAR.
    """

    def __init__(self):
        self.known, self.floor, self.page = available(), 0, resource.getpagesize()
        if self.known:
            self.statm = os.open("/proc/self/statm", os.O_RDONLY)
            self._reset()

    def _reset(self):
        self.floor = Growth().before

    def _above(self):
        """Bytes from the floor to the peak; the quick look is too high where a program before this one left its own."""
        quick = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - self.floor
        return quick if quick <= NEAR else resident("VmHWM") - self.floor

    def begin(self):
        if not self.known:
            return
        now = int(os.pread(self.statm, 64, 0).split()[1]) * self.page
        if self._above() > NEAR or now < self.floor - NEAR:
            self._reset()

    def end(self):
        """Bytes that the case took at its peak; 0 where the system cannot say."""
        return max(0, self._above()) if self.known else 0
