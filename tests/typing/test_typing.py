"""The stubs agree with the built module, and a type checker accepts and refuses what it should."""

import ast
import re
from pathlib import Path

import pytest

from jpo import _core
from jpo.storage import COMPUTES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
api = pytest.importorskip("mypy.api", reason="mypy is not installed")


def check(tmp_path, name):
    out, err, status = api.run(
        [str(HERE / name), "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    )
    return [line for line in out.splitlines() if ": error:" in line and f"tests/typing/{name}" in line], err


def test_right_uses_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    errors, stderr = check(tmp_path, "sample.py")
    assert not errors and not stderr


def test_wrong_uses_fail_line_by_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    errors, _ = check(tmp_path, "wrong.py")
    lines = (HERE / "wrong.py").read_text(encoding="utf-8").splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {int(re.search(r"wrong\.py:(\d+)", error).group(1)) for error in errors} == wrong


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
