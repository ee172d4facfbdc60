"""The interrupt sweep at a small size; its figures are taken by `python -m tests.hostile.interrupts` on a quiet
machine."""

import gc
import sys
import time

import pytest

from tests.hostile import interrupts


def test_every_operation_ends_by_the_interrupt(tmp_path):
    for name, make in interrupts.operations("tiny", tmp_path, scale=0.02).items():
        waits = interrupts.measured(make, trials=2)
        assert len(waits) == 2 and waits[0] >= 0, name


def test_a_late_answer_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["interrupts", "--trials", "2", "--only", "score", "--model", "tiny"])
    monkeypatch.setattr(interrupts, "GOAL", 0.0)
    with pytest.raises(SystemExit, match="later than 0.0 s: score"):
        interrupts.main()
    assert "score: 2 trials, median" in capsys.readouterr().out


def test_a_sweep_goes_on_where_it_was_ended(tmp_path):
    log, made = interrupts.Log(tmp_path / "waits.jsonl", "tiny"), []

    def make():
        made.append(time.monotonic())
        return lambda: time.sleep(1)

    for trials in (2, 3, 3):
        known = log.waits("sleep")[:trials]
        waits = interrupts.measured(make, trials, before=known, told=lambda wait: log.add("sleep", wait))
        assert len(waits) == trials
    assert len(made) == 2 and len(log.waits("sleep")) == 3  # the third run had nothing left to do
    assert interrupts.Log(log.path, "another").waits("sleep") == [] == log.waits("another")


def test_an_interrupt_that_a_callback_of_the_collector_loses_comes_again(monkeypatch):
    """hypothesis has such a callback; without a second signal the trial would last for ever."""
    monkeypatch.setattr(interrupts, "AGAIN", 0.05)
    lost = []

    def loses(phase, info):
        try:
            while not lost:  # the first signal comes while this runs
                pass
        except KeyboardInterrupt:
            lost.append(phase)

    def call():
        if not lost:
            gc.collect()

    gc.callbacks.append(loses)
    try:
        for _ in range(20):  # on a busy machine the first may come before the collector's callback runs
            wait = interrupts.waited(call, 0.01)
            if lost:
                break
    finally:
        gc.callbacks.remove(loses)
    assert lost and wait >= 0.04


def test_a_second_signal_while_the_first_is_counted(monkeypatch):
    """On a busy machine the next one came while the answer to the first was being written down, and ended the sweep."""
    monkeypatch.setattr(interrupts, "AGAIN", 1e-5)
    for trial in range(20):
        assert interrupts.waited(lambda: time.sleep(0.2), 0.001) >= 0, trial
