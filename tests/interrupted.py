"""How soon a call ends once a signal has come."""

import signal
import time

import pytest


class Stop(Exception):
    """What the signal's handler raises."""


def waits_after_signals(call, delays):
    """For each of `delays` (seconds into the call) the seconds from the signal to the call's end, in order of size."""

    def stop(*_):
        raise Stop

    waits = []
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for delay in delays:
            start = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(Stop):
                call()
            waits.append(time.monotonic() - start - delay)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return sorted(waits)
