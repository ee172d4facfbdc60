"""What setup.py does besides compiling: the library's own soname, and the messages for missing tools."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
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


def backend(folder, command):
    """One call of the build backend, as pip makes it; what it printed stands in the failure."""
    code = f"from setuptools import build_meta; build_meta.{command}('out')"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(not TOOLS, reason="setuptools and scipy-openblas32, the build requirements, are not installed")
def test_source_archive_and_the_wheel_from_it_hold_what_they_should(tmp_path):
    """All of the tree but the C core, for which an empty file stands, so that the test takes seconds. A tree with the
    leavings of builds and runs gives the same archive."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in tracked.stdout.splitlines() if not name.startswith(("csrc/", "notebooks/"))]
    tree = tmp_path / "tree"
    for name in [*names, "jpo/_core.cpython-1-x.so", "jpo/_libs/old.so", "out/adapter_model.safetensors", "jpo/x.pyc"]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file() and name in names:
            shutil.copy(ROOT / name, tree / name)
        else:
            (tree / name).write_bytes(b"left over")
    (tree / "csrc/base").mkdir(parents=True)
    (tree / "csrc/base/empty.c").write_text('#include "base/empty.h"\nint jpo_nothing;\n')
    (tree / "csrc/base/empty.h").write_text("\n")
    backend(tree, "build_sdist")
    (archive,) = (tree / "out").glob("jpo-*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
        files = {member.name.split("/", 1)[1] for member in file.getmembers() if member.isfile()}
        file.extractall(tmp_path / "unpacked", filter="data") if sys.version_info >= (3, 12) else file.extractall(
            tmp_path / "unpacked"
        )
    package = {name for name in names if name.startswith("jpo/")}
    rest = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "setup.cfg"}
    rest |= {"csrc/base/empty.c", "csrc/base/empty.h"}
    assert {name for name in files if not name.startswith("jpo.egg-info/")} == package | rest
    assert not any(name.startswith("tests") for name in held)
    (source,) = (tmp_path / "unpacked").iterdir()
    backend(source, "build_wheel")
    (wheel,) = (source / "out").glob("jpo-*.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    built = {name for name in inside if name.startswith("jpo/_core") and name.endswith(".so")}
    vendored = {name for name in inside if name.startswith("jpo/_libs/")}
    assert len(built) == 1 and inside - built - vendored == package
    if os.environ.get("JPO_SYSTEM_BLAS") != "1":
        assert vendored == {"jpo/_libs/libjpo32_openblas.so", "jpo/_libs/LICENSE-openblas.txt"}
