"""What all tests share: instruction sets and the table of those that ran; the rule for parity tests. pytest puts the
repository's root and tests/ on the import path.

Tests of kernels take the fixture `isa` and so run on every instruction set; those above what JPO_CPU names skip, so
that a step of CI with JPO_CPU=generic runs nothing else. The end of a run prints which set each test had; with
JPO_ISA_LOG=FILE the line is also added to that file, and .ci/run holds its steps to what they say.

A test in tests/parity compares with torch, transformers, TRL or PEFT. Where one is missing its file is skipped, by
name; with JPO_REQUIRE_PARITY=1 (CI) that skip is a failure instead.
"""

import collections
import importlib.util
import os
from pathlib import Path

import pytest

from jpo import _core

LEVELS = ("generic", "avx2", "avx512")  # each includes those before it
ISAS = (*LEVELS, "neon")
ASKED = os.environ.get("JPO_CPU", "").split(",")[0]
ran = collections.Counter()  # instruction set -> tests whose body ran with it


def forbidden(name):
    """Whether JPO_CPU keeps tests from this instruction set."""
    if ASKED not in ISAS:
        return False
    return name != ASKED and (name not in LEVELS or ASKED not in LEVELS or LEVELS.index(name) > LEVELS.index(ASKED))


@pytest.fixture
def set_isa():
    """A function that chooses an instruction set for this test; it skips, by name, where the set cannot run."""
    before = _core.system_info()["isa"]

    def choose(name):
        if forbidden(name):
            pytest.skip(f"JPO_CPU={ASKED} leaves {name} out")
        if not _core.set_isa(name):
            pytest.skip(f"this machine has no {name}")

    yield choose
    _core.set_isa(before)


@pytest.fixture(params=ISAS)
def isa(request, set_isa):
    """Each instruction set that the machine has and JPO_CPU allows, restored afterwards."""
    set_isa(request.param)
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Counts the test for the instruction set that it starts with, its fixtures' choice included."""
    ran[_core.system_info()["isa"]] += 1
    return (yield)


def pytest_terminal_summary(terminalreporter):
    """One line: the tests that ran on each instruction set."""
    counts = ", ".join(f"{name} {ran[name]}" for name in ISAS if ran[name])
    line = f"instruction sets (JPO_CPU={os.environ.get('JPO_CPU', '')}): {counts or 'no test ran'}"
    terminalreporter.write_line(line)
    if log := os.environ.get("JPO_ISA_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(line + "\n")


PARITY = Path(__file__).parent / "parity"
NEEDED = ("torch", "transformers", "peft", "trl", "datasets")


class MissingPeer(pytest.Item):
    """Stands in for a parity file that cannot be imported, so that the skip (or failure) carries the file's name."""

    def __init__(self, *, missing, **keywords):
        super().__init__(**keywords)
        self.missing = missing

    def runtest(self):
        message = f"parity: {self.path.name} needs {', '.join(self.missing)} (pip install '.[parity]')"
        if os.environ.get("JPO_REQUIRE_PARITY") == "1":
            pytest.fail(message + "; JPO_REQUIRE_PARITY=1 allows no skip", pytrace=False)
        pytest.skip(message)

    def reportinfo(self):
        return self.path, 0, self.path.name


class MissingPeers(pytest.File):
    """The file of a MissingPeer."""

    def collect(self):
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        yield MissingPeer.from_parent(self, name=self.path.stem, missing=missing)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path, parent):
    """Takes the parity files over where a peer is missing; None leaves every other file to pytest."""
    if PARITY in module_path.parents and any(importlib.util.find_spec(name) is None for name in NEEDED):
        return MissingPeers.from_parent(parent, path=module_path)
    return None
