"""Prints the run-time dependencies of pyproject.toml at their lowest allowed versions, one requirement a line."""

import re
import sys
from pathlib import Path

text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
found = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
if found is None:
    sys.exit("pyproject.toml: no dependencies found")
for requirement in re.findall(r'"([^"]+)"', found.group(1)):
    name, bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,.*)?", requirement).groups()
    print(f"{name}=={bound}")
