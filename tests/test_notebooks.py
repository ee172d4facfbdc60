"""The notebooks' code cells run from top to bottom and print what is stored, but for numbers' last digits."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path, tmp_path, monkeypatch):
    assert path.stat().st_size < 500_000
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__main__"}
    for index, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{path.name}:cell-{index}", "exec"), space)
        stored = "".join(text for output in cell["outputs"] for text in output.get("text", []))
        assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", stored), f"cell {index}"
        ours, theirs = ([float(number) for number in NUMBER.findall(text)] for text in (printed.getvalue(), stored))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5, err_msg=f"cell {index}")
