"""The README's Python blocks run as printed; its two commands are the two that CI runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", range(len(re.findall(r"^```python$", README, re.MULTILINE))))
def test_python_block_runs_as_printed(number, tmp_path):
    block = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[number]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + block
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_there_are_exactly_two_commands():
    commands = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    assert "pip install ." in commands[0] and "-m pytest" in commands[1]


def test_every_extra_named_exists():
    section = README[README.index("## Extras") :].split("##")[1]
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+)`", section):
        assert re.search(rf"^{name} = \[", declared, re.MULTILINE), name
