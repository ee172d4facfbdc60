"""AlpacaEval 2's length-controlled win-rate: a fixed table against the package's figures, and against the package
itself where it is installed (here, or in the interpreter that JPO_ALPACA_EVAL names)."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jpo.cli.main import main
from jpo.errors import DataError
from jpo.evaluate.alpaca_eval import annotated, read_annotations, read_evaluation_set
from jpo.evaluate.alpaca_regression import Difficulty, alpaca_length_controlled, read_difficulty
from tests.evaluate.table import table, write_gamed

FORMS = ("length_controlled_minimal", "length_controlled_noreg", "length_controlled_v1")
# seed of the table -> what alpaca_eval 0.6.6 with scikit-learn 1.9.1 says of it, percent: (win-rate, standard error)
PACKAGE = {
    0: ((40.658976, 0.0), (39.532409, 1.254150), (39.840213, 1.059759)),
    3: ((42.074383, 0.0), (41.306397, 1.132438), (42.277839, 0.949736)),
}
_RUN = """
import json, sys, pandas as pd
from alpaca_eval.metrics import glm_winrate as g
g.hf_hub_download = lambda **options: sys.argv[2]
rows = pd.DataFrame(json.load(open(sys.argv[1])))
found = [g.get_length_controlled_winrate(rows.copy(), glm_name=name, save_weights_dir=None) for name in sys.argv[3:]]
print(json.dumps([[float(f["length_controlled_winrate"]), float(f["lc_standard_error"])] for f in found]))
"""


def ours(path, gamed):
    of = read_difficulty(gamed)
    found = []
    for difficulty in (None, Difficulty(of.of), of):
        row = read_annotations(path, difficulty)["m"]["alpaca_eval"]
        found.append((row["glm"], row["length_controlled_winrate"], row["lc_standard_error"]))
    return found


@pytest.fixture
def files(tmp_path):
    def made(seed):
        rows, gamed = table(seed)
        (tmp_path / "t.json").write_text(json.dumps(rows))
        write_gamed(tmp_path / "g.csv", gamed)
        return str(tmp_path / "t.json"), str(tmp_path / "g.csv")

    return made


@pytest.mark.parametrize("seed", PACKAGE)
def test_a_fixed_table_gives_the_packages_figures(seed, files):
    for (glm, rate, error), name, want in zip(ours(*files(seed)), FORMS, PACKAGE[seed], strict=True):
        assert glm == name and rate == pytest.approx(want[0], abs=0.1), name
        assert error == pytest.approx(want[1], abs=0.01), name


def test_the_package_itself_agrees(files):
    python = os.environ.get("JPO_ALPACA_EVAL") or sys.executable
    if python == sys.executable and importlib.util.find_spec("alpaca_eval") is None:
        pytest.skip("alpaca_eval is not installed here, and JPO_ALPACA_EVAL names no interpreter that has it")
    for seed in (0, 7):
        path, gamed = files(seed)
        done = subprocess.run([python, "-c", _RUN, path, gamed, *FORMS], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        for (_, rate, error), want in zip(ours(path, gamed), json.loads(done.stdout.splitlines()[-1]), strict=True):
            assert (rate, error) == pytest.approx(want, abs=0.1)


def test_the_fit_is_the_optimum_of_its_objective():
    optimize = pytest.importorskip("scipy.optimize")
    from jpo.evaluate import alpaca_regression as own

    rng = np.random.default_rng(5)
    x = np.stack([np.tanh(rng.normal(size=300)), rng.normal(size=300), np.ones(300)], axis=1)
    y, importance = rng.random(300), rng.random(300)
    for strength in (1e-3, 0.02, 1.0, 1e4):
        got = own._lasso(x, y, importance, strength, np.zeros(3))

        def objective(w, strength=strength):
            parts = w[:3] - w[3:]  # |w|_1 is smooth over positive and negative parts
            z = x @ parts
            return w.sum() + strength * (importance * (np.logaddexp(0, z) - y * z)).sum()

        best = optimize.minimize(objective, np.full(6, 0.1), bounds=[(0, None)] * 6, options={"ftol": 1e-15}).fun
        value = np.abs(got).sum() + strength * (importance * (np.logaddexp(0, x @ got) - y * (x @ got))).sum()
        assert value <= best * (1 + 1e-7) + 1e-9


def test_what_cannot_be_fitted_says_why():
    few = alpaca_length_controlled([1.0] * 9, range(9), range(9))
    assert few["length_controlled_winrate"] is None and "9 verdicts are too few" in few["problem"]
    same = alpaca_length_controlled([0.5, 1.0] * 10, [5] * 20, [9] * 20)
    assert same["length_controlled_winrate"] is None and "no effect of length" in same["problem"]
    with pytest.raises(DataError, match="lacks instruction 3 .and 16 more"):
        alpaca_length_controlled([0.5] * 20, range(20), [1] * 20, difficulty=Difficulty({0: 1.0, 1: 0.0, 2: 0.1}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,other\n1,2\n", "expected the columns index and instruction_difficulty"),
        ("index,instruction_difficulty\n1,x\n", "line 2: could not convert"),
        ("index,instruction_difficulty\n", "holds no instruction"),
        ("", "expected the columns"),
    ],
)
def test_files_of_difficulties(text, message, tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"d.csv.*{message}"):
        read_difficulty(path)
    path.write_text(",instruction_difficulty\n0,1.5\n1,-0.5\n")  # as pandas writes its index
    assert read_difficulty(path).of == {0: 1.5, 1: -0.5}


def test_the_command_shows_it(files, tmp_path, capsys):
    path, gamed = files(0)
    flags = ["evaluate", "--alpaca-eval-annotations", path]
    assert main(flags) == 0 and "length_controlled_minimal 40.7 %" in capsys.readouterr().out
    out = str(tmp_path / "o.json")
    assert main([*flags, "--alpaca-eval-difficulty", gamed, "--json", out]) == 0
    assert "length_controlled_v1 39.8 %" in capsys.readouterr().out
    assert json.loads(open(out).read())["alpaca_eval"]["m"]["alpaca_eval"]["weights"]["length"] < -1


def test_judged_outputs_become_annotations(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"instruction": f"q{n}", "output": "base", "generator": "gpt"} for n in range(3)]))
    rows = read_evaluation_set(path)
    assert rows[2] == {"id": 2, "instruction": "q2", "gold_response": "base", "generator": "gpt"}
    judged = [
        {"id": n, "instruction": f"q{n}", "response_0": "own", "response_1": "base", "model": "dpo", "feedback": f, "annotator": "j"}
        for n, f in enumerate((0, 1, None))
    ]  # fmt: skip
    made = annotated(judged, {str(row["id"]): row["generator"] for row in rows})
    assert [row["preference"] for row in made] == [2.0, 1.0, None] and made[0]["generator_1"] == "gpt"
    (tmp_path / "a.json").write_text(json.dumps(made))
    assert read_annotations(tmp_path / "a.json")["dpo"]["failed"] == 1
    path.write_text(json.dumps([{"instruction": "q"}]))
    with pytest.raises(DataError, match="output: expected a text"):
        read_evaluation_set(path)


def test_the_table_is_the_one_that_the_package_saw(files):
    """Its file's columns are those of AlpacaEval's own."""
    _, gamed = files(0)
    with open(gamed, newline="") as file:
        row = next(csv.DictReader(file))
    assert list(row) == [
        "preference",
        "index",
        "std_delta_len",
        "instruction_difficulty",
        "not_gamed_baseline",
        "model",
    ]
