"""The notebooks' code cells run from top to bottom. Those of exact arithmetic print what is stored, but for numbers'
last digits; those of models, whose stored outputs are of larger runs, run on the embedded default and are held to their
results."""

import contextlib
import io
import json
import math
import re
from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def aligned(space):
    """02: both methods start at log 2, and learn their own pairs; the samples are of three policies."""
    assert space["MODEL"] == "tiny" and space["DATA"].endswith("example.jsonl")
    for name in ("dpo", "jpo_history"):
        history = space[name]
        assert history["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
        assert len(history["loss"]) == 10 and history["rewards/margins"][-1] > 0
    assert list(space["texts"]) == ["base", "DPO", "JPO"]
    assert (space["folder"] / "joint" / "adapter_model.safetensors").exists()


def studied(space):
    """04: every policy has a win-rate for each seed and temperature, and every figure is drawn."""
    rates = space["results"]["win_rates"]
    assert set(rates) == {"sft", "dpo", "jpo_joint", "jpo_union"}
    assert all(0 <= value <= 1 for seeds in rates.values() for cells in seeds.values() for value in cells.values())
    assert all(set(seeds) == {"0", "1", "2"} for seeds in rates.values())
    assert tuple(space["drawn"]) == ("overview", "win_rates", "interplay", "scaling", "mixing")
    assert set(space["swept"]) == {"dpo", "jpo_joint"}
    assert all(0 <= won <= 100 and 0 <= unread <= 100 for cells in space["swept"].values() for won, unread in cells)


def summarized(space):
    """05, its cut: made-up posts, from which the tiny model learns; ROUGE-L is that of the files, in all methods and
    degrees."""
    assert space["SIZES"] == "cut" and space["results"]["sizes"]["test"] == 6
    assert space["rouge"](space["rows"][0]["instruction"], space["rows"][0]["gold_response"]) == 1
    outcome = space["outcome"]
    assert {method for method, _ in outcome} == {"sft", "dpo", "jpo_joint", "jpo_union"}
    assert outcome["sft", "all"]["rouge"]["mean"] > 0.2 and outcome["sft", "all"]["wins"]["mean"] == 0.5
    for cell in outcome.values():
        assert 0 <= cell["rouge"]["mean"] <= 1 and 0 <= cell["wins"]["mean"] <= 1


LARGER = {
    "02_align_smollm2.ipynb": aligned,
    "04_study.ipynb": studied,
    "05_real_posts.ipynb": summarized,
}  # stored outputs are not of the embedded default


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 5 and set(LARGER) < {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path, tmp_path, monkeypatch):
    assert path.stat().st_size < 500_000
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(?:tmp|home|root|work|usr)/", text), "a path of the machine that ran it"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JPO_NOTEBOOK_MODEL", "tiny")
    for name in ("JPO_NOTEBOOK_DATA", "JPO_NOTEBOOK_SIZES", "JPO_NOTEBOOK_COMPUTE", "JPO_STUDY", "JPO_SWEEP"):
        monkeypatch.delenv(name, raising=False)
    matplotlib.use("Agg")
    space = {"__name__": "__main__"}
    for index, cell in enumerate(json.loads(text)["cells"]):
        if cell["cell_type"] != "code":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{path.name}:cell-{index}", "exec"), space)
        assert all(output["output_type"] != "error" for output in cell["outputs"]), (
            f"cell {index}: stored with an error"
        )
        if path.name not in LARGER:
            compare(printed.getvalue(), cell, index)
    matplotlib.pyplot.close("all")
    LARGER.get(path.name, lambda space: None)(space)


def compare(printed, cell, index):
    stored = "".join("".join(output.get("text", [])) for output in cell["outputs"])
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", stored), f"cell {index}"
    ours, theirs = ([float(number) for number in NUMBER.findall(text)] for text in (printed, stored))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5, err_msg=f"cell {index}")
