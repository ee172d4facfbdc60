"""What setup.py does besides compiling: the library's own soname, and the messages for missing tools."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = Path(__import__("jpo").__file__).parent
TOOLS = all(
    __import__("importlib.util", fromlist=["util"]).find_spec(name) for name in ("setuptools", "scipy_openblas32")
)


def build(tmp_path, **environment):
    """Runs the build of a copy of the tree; its exit status and all that it printed."""
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "empty.c").write_text("int jpo_nothing;\n")
    (tmp_path / "jpo").mkdir()
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.skipif(not TOOLS, reason="setuptools and scipy-openblas32, the build requirements, are not installed")
def test_missing_compiler_names_its_package(tmp_path):
    status, text = build(tmp_path, CC="no-such-compiler")
    assert status != 0 and "no-such-compiler" in text and "apt-get install build-essential" in text
    assert "Traceback" not in text


@pytest.mark.skipif(not TOOLS, reason="setuptools and scipy-openblas32, the build requirements, are not installed")
def test_compiler_without_headers_names_its_package(tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'fatal error: stdio.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / "tree").mkdir()
    status, text = build(tmp_path / "tree", CC=str(broken))
    assert status != 0 and "libc6-dev" in text and "stdio.h: No such file" in text


@pytest.mark.skipif(not TOOLS, reason="setuptools and scipy-openblas32, the build requirements, are not installed")
def test_missing_python_header_names_its_package(tmp_path):
    hook = tmp_path / "site"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sysconfig\nsysconfig.get_path = lambda *a, **k: '/nowhere/include'\n"
    )
    (tmp_path / "tree").mkdir()
    status, text = build(tmp_path / "tree", PYTHONPATH=str(hook))
    assert status != 0 and "Python.h was not found" in text and "apt-get install python3-dev" in text


@pytest.mark.skipif(not TOOLS, reason="setuptools and scipy-openblas32, the build requirements, are not installed")
def test_a_build_for_installation_serves_the_repository_root_too(tmp_path):
    """pip install . builds elsewhere; Python started in the root imports the folder jpo/, which needs the extension."""
    status, text = build(tmp_path)
    assert status == 0, text
    assert list((tmp_path / "jpo").glob("_core*.so"))
    assert os.environ.get("JPO_SYSTEM_BLAS") == "1" or (tmp_path / "jpo/_libs/libjpo32_openblas.so").is_file()


def test_a_missing_core_names_the_remedy(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jpo", ignore=shutil.ignore_patterns("_core*.so", "_libs", "__pycache__"))
    # without site, so that an editable installation's import hook does not find the extension of the checkout
    command = [sys.executable, "-S", "-c", "import jpo; jpo.load('tiny')"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and "pip install -e ." in last and str(tmp_path / "jpo") in last


def test_the_library_is_ours_alone():
    library = PACKAGE / "_libs" / "libjpo32_openblas.so"
    if not library.is_file():
        pytest.skip("built with JPO_SYSTEM_BLAS=1")
    code = "import jpo._core; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert str(library) in maps and b"libscipy_openblas.so" not in library.read_bytes()
    assert (PACKAGE / "NOTICES").is_file() and (library.parent / "LICENSE-openblas.txt").is_file()
