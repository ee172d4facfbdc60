"""The stubs agree with the built module, and a type checker accepts and refuses what it should."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import jpo
from jpo import _core
from jpo.objectives import LossName
from jpo.storage import COMPUTES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def mypy(tmp_path, name):
    """{line: message} of mypy's errors in a file; its cache stays in the checkout, for the tests that follow."""
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    out, err, _ = api.run([str(HERE / name), "--config-file", str(ROOT / "pyproject.toml")])
    assert not err
    return {int(line): text for line, text in re.findall(rf"{name}:(\d+): error: (.*)", out)}


def pyright(tmp_path, name):
    """{line: message} of pyright's errors in a file, by the wheel that carries its program (basedpyright, whose rules
    are set to pyright's own)."""
    pytest.importorskip("basedpyright", reason="basedpyright is not installed")
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(
        json.dumps({"typeCheckingMode": "standard", "include": [str(HERE / name)], "extraPaths": [str(ROOT)]})
    )
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(settings)]
    result = subprocess.run([*command, "--pythonpath", sys.executable], capture_output=True, text=True)
    found = json.loads(result.stdout)["generalDiagnostics"]
    assert result.returncode in (0, 1), result.stdout
    return {
        item["range"]["start"]["line"] + 1: item["message"]
        for item in found
        if item["severity"] == "error" and item["file"].endswith(name)
    }


CHECKERS = pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])


@CHECKERS
def test_right_uses_pass(checker, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert not checker(tmp_path, "right.py")


@CHECKERS
def test_wrong_uses_fail_line_by_line(checker, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = (HERE / "wrong.py").read_text(encoding="utf-8").splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert len(wrong) >= 20
    assert set(checker(tmp_path, "wrong.py")) == wrong


def test_the_whole_package_passes_mypy(monkeypatch):
    """What mypy finds in jpo/ with the settings of pyproject.toml; its cache stays in the checkout (9 s without)."""
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    monkeypatch.chdir(ROOT)
    out, err, status = api.run(["jpo"])
    assert status == 0 and not err, out + err


def test_public_names_are_typed_at_the_top_level():
    """What __getattr__ finds at run time is what checkers see."""
    tree = ast.parse((ROOT / "jpo" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(jpo.__all__)


def test_loss_names_are_the_engine_s():
    assert set(get_args(LossName)) == {name for name, _ in _core.LOSSES}


def test_stub_knows_every_compute_type():
    tree = ast.parse((ROOT / "jpo" / "_core.pyi").read_text(encoding="utf-8"))
    (names,) = (
        node.value.slice for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "Compute"
    )
    assert [name.value for name in names.elts] == [name for name, _, _ in _core.compute_types()] == [*COMPUTES]


def test_stub_names_are_the_module_s():
    tree = ast.parse((ROOT / "jpo" / "_core.pyi").read_text(encoding="utf-8"))
    stubbed = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))} - {"SystemInfo"}
    stubbed |= {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    public = {name for name in dir(_core) if not name.startswith("_")}
    assert stubbed <= public, f"only in the stub: {stubbed - public}"
    assert public <= stubbed, f"jpo/_core.pyi lacks {sorted(public - stubbed)}"


def test_stub_methods_are_the_model_s():
    tree = ast.parse((ROOT / "jpo" / "_core.pyi").read_text(encoding="utf-8"))
    (model,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Model")
    stubbed = {node.name for node in model.body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    public = {name for name in dir(_core.Model) if not name.startswith("_")}
    assert stubbed == public, f"{sorted(public ^ stubbed)}"
