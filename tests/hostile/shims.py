"""Libraries out of shim/ that are preloaded into a process, to fail or end it at a chosen call of the C library."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "shim"


def built(name, folder):
    """The path of the library, built out of shim/NAME.c into the folder; the test is skipped where that cannot be."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the shim needs a C compiler and Linux's loader")
    library = folder / f"{name}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", SOURCES / f"{name}.c", "-o", library, "-ldl"], check=True)
    return library
