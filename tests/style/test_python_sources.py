"""The mechanical rules of jpo/ and of the project's top level."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "jpo").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TOP = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "jpo", "tests", "notebooks"}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets"}


def imported(path):
    """The top-level names of every import in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    faults = []
    if text.strip() and ast.get_docstring(tree) is None:
        faults.append("has no docstring that says what it does")
    if len(text.splitlines()) > 600:
        faults.append(f"has {len(text.splitlines())} lines; a file should stay under 600")
    heavy = HEAVY & set(imported(path))
    if path == ROOT / "jpo" / "hub" / "data.py":
        heavy -= {"datasets"}  # for data sets of the hub, where it is installed
    if heavy and path.parent != ROOT / "jpo" / "torch":  # the extra whose purpose they are
        faults.append(f"imports {heavy}: jpo runs without torch and its family")
    if re.search(r"(?<![\w.])(eval|exec)\(", text):
        faults.append("evaluates text as code")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = node.end_lineno - body[0].lineno if body else 0
            if lines > 100:
                faults.append(f"{node.name} has {lines} lines behind its docstring")
    assert not faults, f"{path.relative_to(ROOT)}: " + "; ".join(faults)


def prose(text):
    """Line numbers of docstrings and of comments that have their lines for themselves."""
    for node in ast.walk(ast.parse(text)):
        for part in getattr(node, "body", None) if isinstance(getattr(node, "body", None), list) else ():
            if (
                isinstance(part, ast.Expr)
                and isinstance(part.value, ast.Constant)
                and isinstance(part.value.value, str)
            ):
                yield from range(part.lineno, part.end_lineno + 1)
    yield from (number for number, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith("#"))


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_keeps_120_columns(path):
    """Of code and its strings ruff format keeps the width, as far as it can."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    wide = sorted({number for number in prose(text) if len(lines[number - 1]) > 120})
    assert not wide, f"{path.relative_to(ROOT)}: lines of more than 120 columns: {wide}"


def test_torch_lives_in_parity_only():
    for path in TESTS:
        if "parity" not in path.parts and "benchmarks" not in path.parts:
            assert not HEAVY & set(imported(path)), f"{path.relative_to(ROOT)} imports {HEAVY & set(imported(path))}"


def test_top_level_is_fixed():
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = {line.split("/")[0] for line in listed.splitlines() if not line.startswith(".")}
    assert names <= TOP, f"further top-level files: {names - TOP}"


def test_no_machine_paths():
    pattern = re.compile("/" + r"work/|/root/|/home/\w+/")
    for path in [*MODULES, *TESTS, *(ROOT / "csrc").rglob("*.[ch]"), ROOT / "README.md", ROOT / ".ci" / "run"]:
        if path.is_file() and path != Path(__file__):
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)} holds a machine's path: {found.group()}"


def test_nothing_else_of_jpo_imports_jpo_torch():
    for path in (ROOT / "jpo").rglob("*.py"):
        if path.parent != ROOT / "jpo" / "torch":
            assert not re.search(r"^\s*(import|from) jpo\.torch\b", path.read_text(), re.M), path
