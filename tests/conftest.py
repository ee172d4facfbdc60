"""What all tests share: the rule for parity tests. pytest puts the repository's root and tests/ on the import path.

A test in tests/parity compares with torch, transformers, TRL or PEFT. Where one is missing its file is skipped, by
name; with JPO_REQUIRE_PARITY=1 (CI) that skip is a failure instead.
"""

import importlib.util
import os
from pathlib import Path

import pytest

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
