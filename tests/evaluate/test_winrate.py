"""Generations against gold: the join, the table, intervals against scipy, length control, AlpacaEval's files."""

import json

import numpy as np
import pytest

from jpo.cli.main import main
from jpo.errors import DataError
from jpo.evaluate import length_controlled, read_annotations, t_interval, win_rates
from jpo.evaluate.judging import beside_gold, judge_generations
from jpo.evaluate.statistics import t_quantile
from jpo.feedback.judges import CallableJudge
from tests.feedback.server import longest

GOLD = [{"id": n, "instruction": f"question {n}", "gold_response": "y" * 5} for n in range(8)]


def outputs(model, lengths, training_seed=None, temperature=0.5):
    rows = [
        {
            "id": n,
            "instruction": f"question {n}",
            "output": "x" * length,
            "temperature": temperature,
            "seed": 0,
            "sample": 0,
        }
        for n, length in enumerate(lengths)
    ]
    return [
        row | {"model": model} | ({} if training_seed is None else {"training_seed": training_seed}) for row in rows
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_outputs_meet_gold_by_id_and_instruction():
    rows, missing = beside_gold(outputs("m", [1, 2, 3])[::-1], GOLD)
    assert [(row["id"], len(row["response_0"])) for row in rows] == [(2, 3), (1, 2), (0, 1)] and missing == 5
    for change, message in (
        ({"id": 99}, "id 99 is not among the 8"),
        ({"instruction": "other"}, "another instruction"),
        ({"output": None}, "output: expected a text"),
    ):
        with pytest.raises(DataError, match=message):
            beside_gold([outputs("m", [1])[0] | change], GOLD)
    bare = [{"instruction": "question 3", "output": "a"}]
    assert beside_gold(bare, GOLD)[0][0]["id"] == 3
    with pytest.raises(DataError, match="stands 2 times"):
        beside_gold(bare, [*GOLD, GOLD[3] | {"id": "again"}])


def test_the_table_of_two_methods_and_three_seeds(tmp_path):
    rows = [row for seed in range(3) for row in outputs("jpo", [9, 9, 9, 9, 9, 9 * (seed > 0), 5, 1], seed)]
    rows += [row for seed in range(3) for row in outputs("sft", [1, 1, 1, 1, 1, 1, 5, 9], seed)]
    judge = CallableJudge(longest, "callable:longest")
    judged, summary, missing = judge_generations(rows, GOLD, judge, tmp_path / "judged.jsonl")
    assert missing == 0 and len(judged) == 48 and summary.feedback["failed"] == 0
    table = win_rates(judged)
    cell = table["win_rates"]["jpo"]["0.5"]
    rates = [5.5 / 8, 6.5 / 8, 6.5 / 8]  # the blank output of seed 0 loses unasked
    assert [run["win_rate"] for run in cell["by_run"].values()] == rates
    assert cell["win_rate"] == pytest.approx(np.mean(rates)) and cell["runs"] == 3 and not table["underpowered"]
    assert (cell["wins"], cell["losses"], cell["ties"], cell["total"]) == (17, 4, 3, 24)
    assert cell["longer_than_gold"] == 17 / 24
    assert cell["low"] == pytest.approx(np.mean(rates) - 4.30265273 * np.std(rates, ddof=1) / 3**0.5)
    (row,) = table["comparisons"]
    assert row["models"] == ["jpo", "sft"] and row["n"] == 8
    assert row["difference"] == pytest.approx(np.mean(rates) - 1.5 / 8)
    again = judge_generations(rows, GOLD, judge, tmp_path / "judged.jsonl")
    assert again[1].asked == 0 and again[0] == judged
    with pytest.raises(DataError, match="stands twice"):
        judge_generations([*rows, rows[0]], GOLD, judge, tmp_path / "judged.jsonl")


def test_failed_verdicts_are_counted_and_not_scored():
    row = {"id": 1, "model": "m", "temperature": 1, "seed": 0, "response_0": "a", "response_1": "b"}
    table = win_rates([row | {"feedback": None}, row | {"id": 2, "feedback": 0}])
    cell = table["win_rates"]["m"]["1"]
    assert cell["failed"] == 1 and cell["total"] == 1 and cell["win_rate"] == 1 and table["underpowered"]
    empty = win_rates([row | {"feedback": None}])["win_rates"]["m"]["1"]
    assert empty["win_rate"] is None and empty["length_controlled"]["mean"] is None


def test_the_command_judges_and_scores_again(tmp_path, capsys):
    source = write(tmp_path / "g.jsonl", outputs("m", [9, 9, 5, 1]))
    gold, out = write(tmp_path / "gold.jsonl", GOLD), str(tmp_path / "t.json")
    flags = ["evaluate", "--generations", source, "--gold", gold, "--judge", "tests.feedback.server:longest"]
    assert main([*flags, "--json", out]) == 0
    shown = capsys.readouterr().out
    assert "m, temperature 0.5: wins 2, losses 1, ties 1, win-rate 62.5 % (over 1 seed; over 4 items, 95 %: " in shown
    assert "underpowered" in shown
    assert "without an output: 4" in shown
    figures = json.loads((tmp_path / "t.json").read_text())
    assert figures["win_rates"]["m"]["0.5"]["win_rate"] == 0.625 and figures["missing"] == 4
    assert main(["evaluate", "--judged", str(tmp_path / "g.judged.jsonl")]) == 0
    assert "win-rate 62.5 %" in capsys.readouterr().out
    assert main(["evaluate", "--generations", source, "--verdicts", source]) == 1
    assert "--verdicts and --generations" in capsys.readouterr().err
    assert main(["evaluate", "--generations", source]) == 1 and "--gold and --judge" in capsys.readouterr().err
    assert main(["evaluate", "--judged", gold]) == 1 and "line 1" in capsys.readouterr().err


def test_students_interval():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 5, 30, 499):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)
    values = [0.5, 0.6, 0.9]
    want = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (t_interval(values)["low"], t_interval(values)["high"]) == pytest.approx(want)
    assert t_interval([1.0])["low"] is None and t_interval([])["mean"] is None


def test_length_control_undoes_a_judge_that_likes_length():
    rng = np.random.default_rng(0)
    n = 4000
    difference = rng.normal(150, 100, n).astype(int)  # the model is longer
    z = -0.5 + 1.5 * np.tanh(difference / difference.std(ddof=1))
    scores = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    got = length_controlled(scores, difference + 500, np.full(n, 500))
    want = 1 / (1 + np.exp(0.5))
    assert scores.mean() > 0.6 and got["low"] < want < got["high"] and got["high"] - got["low"] < 0.15
    assert got["length_effect"] == pytest.approx(1.5, abs=0.3)
    optimize = pytest.importorskip("scipy.optimize")
    x = np.stack([np.ones(n), np.tanh(difference / difference.std(ddof=1))], axis=1)

    def loss(w):
        return (np.logaddexp(0, x @ w) - scores * (x @ w)).sum() + 0.005 * w @ w

    best = optimize.minimize(loss, np.zeros(2)).x
    assert got["win_rate"] == pytest.approx(1 / (1 + np.exp(-best[0])), abs=1e-5)
    equal = length_controlled([1, 0.5, 0, 1], [4] * 4, [4] * 4)
    assert equal["win_rate"] == pytest.approx(0.625, abs=0.002) and equal["length_effect"] == 0
    assert length_controlled([1] * 20, range(20), [0] * 20)["win_rate"] > 0.9  # all won: finite


@pytest.mark.parametrize(
    ("scores", "lengths", "problem"),
    [
        ([], [], "no verdict"),
        ([1, 0, 0.5, 1], [9, 2, 3, 4], "4 verdicts are too few for a fit"),
        ([1] * 10 + [0] * 10, range(20, 0, -1), "length alone splits wins from losses"),
        ([0] * 10 + [1] * 10, range(20, 0, -1), "length alone splits wins from losses"),
    ],
)
def test_a_length_control_that_cannot_be_made_says_so(scores, lengths, problem):
    got = length_controlled(scores, list(lengths), [5] * len(scores))
    assert problem in got["problem"] and got["win_rate"] is got["low"] is got["length_effect"] is None
    assert got["n"] == len(scores)
    same = length_controlled([0.0] * 12, range(12), [5] * 12)
    assert same["win_rate"] == 0 and "every verdict is the same" in same["problem"]
    assert length_controlled([1, 0, 0.5] * 5, range(15), [5] * 15)["problem"] is None


def test_the_table_says_why_a_length_control_is_missing():
    from jpo.evaluate import format_table

    judged = [
        {"id": n, "model": "m", "temperature": 1.0, "seed": 0, "training_seed": seed, "response_0": "x" * n, "response_1": "yyy", "feedback": n % 2}
        for seed in range(3)
        for n in range(6)
    ]  # fmt: skip
    table = win_rates(judged)
    cell = table["win_rates"]["m"]["1"]["length_controlled"]
    assert cell["mean"] is None and cell["low"] is None and cell["problem"] == "6 verdicts are too few for a fit"
    assert "length-controlled not fitted (6 verdicts are too few for a fit)" in format_table(table)


def test_alpaca_eval_files(tmp_path, capsys):
    source, out = write(tmp_path / "g.jsonl", outputs("m", [3, 4])), tmp_path / "outputs.json"
    assert main(["evaluate", "--generations", source, "--alpaca-eval-output", str(out)]) == 0
    assert json.loads(out.read_text())[0] == {"instruction": "question 0", "output": "xxx", "generator": "m"}
    twice = write(tmp_path / "two.jsonl", outputs("m", [3]) + outputs("m", [3], temperature=1.0))
    assert main(["evaluate", "--generations", twice, "--alpaca-eval-output", str(out)]) == 1
    assert "line 2: a second output" in capsys.readouterr().err
    rows = [
        {"output_1": "base", "output_2": "mine!", "generator_1": "b", "generator_2": "m", "preference": p}
        for p in (2.0, 1.25, 1.5, 0, None, 1.9)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    got = read_annotations(path)["m"]
    assert got["win_rate"] == pytest.approx((1 + 0.25 + 0.5 + 0.5 + 0.9) / 5)
    assert got["standard_error"] == pytest.approx(np.std([1, 0.25, 0.5, 0.5, 0.9], ddof=1) / 5**0.5)
    assert (got["wins"], got["losses"], got["draws"], got["total"], got["failed"]) == (2, 1, 2, 5, 1)
    assert got["discrete_win_rate"] == 0.6 and got["longer_than_baseline"] == 1
    assert main(["evaluate", "--alpaca-eval-annotations", str(path)]) == 0
    assert "m: wins 2, losses 1, draws 2, win-rate 63.0 %" in capsys.readouterr().out
    for wrong, message in (
        ({"preference": 3}, "from 1 to 2"),
        ({"output_1": None}, "output_1"),
        ({"preference": True}, "True"),
    ):
        path.write_text(json.dumps([rows[0] | wrong]))
        with pytest.raises(DataError, match=message):
            read_annotations(path)
