"""Signals that come while a call runs, how soon the call ends after them, and rounds that wait for an event."""

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
    try:
        signal.setitimer(signal.ITIMER_REAL, delay, again)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if collects:
            gc.enable()


def for_seconds(seconds, enough):
    """Goes round for `seconds`, and then until enough(), a minute more at most: on a busy machine what the rounds wait
    for may come late."""
    end = time.monotonic() + seconds
    while time.monotonic() < end or (not enough() and time.monotonic() < end + 60):
        yield


def wait_after_signal(call, delay):
    """Seconds from a signal, `delay` seconds into the call, to the call's end by the handler's exception."""
    raised = []

    def stop(*_):
        raised.append(time.monotonic())
        raise Stop

    due = time.monotonic() + delay
    with pytest.raises(Stop), alarm(stop, delay):  # on a busy machine the signal may come before the call begins
        call()
    end = time.monotonic()
    assert len(raised) == 1
    return end - due


def waits_after_signals(call, delays):
    """For each of `delays` (seconds into the call) the seconds from the signal to the call's end, in order of size."""
    return sorted(wait_after_signal(call, delay) for delay in delays)


def assert_ends_within(bound, call, delays, rounds=4):
    """The median wait after signals at `delays` is below `bound` seconds, in one round at least: other programs may
    hold the processor during a round, while a call that nobody interrupts is late in each of them."""
    found = []
    for _ in range(rounds):
        found.append(waits_after_signals(call, delays))
        if found[-1][(len(delays) - 1) // 2] < bound:
            return
    raise AssertionError(f"the calls ended {found} seconds after their signals, not within {bound}")
