"""Signals that come while a call runs, and how soon the call ends after them."""

import contextlib
import gc
import signal
import time

import pytest


class Stop(Exception):
    """What the signal's handler raises."""


@contextlib.contextmanager
def alarm(handler, delay, again=0.0):
    """SIGALRM calls `handler` after `delay` seconds, and then each `again` seconds where that is not 0.

    No garbage is collected meanwhile: Python drops an exception that is raised in a callback of the collector, and
    hypothesis, which is loaded beside the tests, has one.
    """
    before, collects = signal.signal(signal.SIGALRM, handler), gc.isenabled()
    gc.disable()
    signal.setitimer(signal.ITIMER_REAL, delay, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if collects:
            gc.enable()


def wait_after_signal(call, delay):
    """Seconds from a signal, `delay` seconds into the call, to the call's end by the handler's exception."""
    raised = []

    def stop(*_):
        raised.append(time.monotonic())
        raise Stop

    with alarm(stop, delay):
        due = time.monotonic() + delay
        with pytest.raises(Stop):
            call()
        end = time.monotonic()
    assert len(raised) == 1
    return end - due


def waits_after_signals(call, delays):
    """For each of `delays` (seconds into the call) the seconds from the signal to the call's end, in order of size."""
    return sorted(wait_after_signal(call, delay) for delay in delays)
