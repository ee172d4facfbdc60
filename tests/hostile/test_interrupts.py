"""The interrupt sweep at a small size; its figures are taken by `python -m tests.hostile.interrupts` on a quiet
machine."""

import sys

import pytest

from tests.hostile import interrupts


def test_every_operation_ends_by_the_interrupt(tmp_path):
    for name, make in interrupts.operations("tiny", tmp_path, scale=0.02).items():
        waits = interrupts.measured(make(), trials=2)
        assert len(waits) == 2 and waits[0] >= 0, name


def test_a_late_answer_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["interrupts", "--trials", "2", "--only", "score", "--model", "tiny"])
    monkeypatch.setattr(interrupts, "GOAL", 0.0)
    with pytest.raises(SystemExit, match="later than 0.0 s: score"):
        interrupts.main()
    assert "score: 2 trials, median" in capsys.readouterr().out
