"""`jpo pairs` on files: each kind of output, chosen by flag or by the records, and its refusals."""

import json

import pytest
import typer
from typer.testing import CliRunner

from jpo.cli.commands.pairs import register
from jpo.errors import JpoError

CONDITIONAL = [{"i_chosen": f"i{at}", "r_chosen": "w", "i_reject": f"i{at}", "r_reject": "l"} for at in range(20)]


@pytest.fixture
def run(tmp_path):
    app = typer.Typer()
    app.command("other")(lambda: None)
    register(app)

    def call(rows, *options):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = CliRunner().invoke(app, ["pairs", "--input", str(source), "--output", str(output), *options])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in output.read_text().splitlines()], result.output

    return call


def test_weak(run):
    made, printed = run(CONDITIONAL, "--weak", "--seed", "3")
    assert len(made) == 20 and all(row["weak"] and row["i_chosen"] != row["i_reject"] for row in made)
    assert "20 of 20 records kept" in printed and "20 weak joint pairs written" in printed
    assert made == run(CONDITIONAL, "--weak", "--seed", "3")[0] != run(CONDITIONAL, "--weak")[0]


def test_candidates_are_the_default(run):
    made, printed = run(CONDITIONAL)
    assert len(made) == 20 and "20 joint candidates of 40 items written" in printed
    made, _ = run(CONDITIONAL, "--count", "12", "--mix", "CC=1,RR=1,CR=2")
    assert sorted((row["label_0"] + row["label_1"]).count("chosen") for row in made) == [0] * 3 + [1] * 6 + [2] * 3


def test_preferences_where_every_record_has_a_verdict(run):
    judged = [{"instruction": "a", "response_0": "x", "response_1": "y", "feedback": value} for value in (0, 2, None)]
    made, printed = run(judged)
    assert made == [{"i_chosen": "a", "r_chosen": "x", "i_reject": "a", "r_reject": "y"}]
    assert "dropped 1: tie" in printed and "dropped 1: failed verdict" in printed
    more = [*judged, {"instruction": "b", "response_0": "x", "response_1": "y", "feedback": 1}]
    assert len(run(more, "--count", "2")[0]) == 2
    with pytest.raises(JpoError, match="no preference pairs came out of 2 records"):
        run(judged[1:])


def test_refusals(run):
    with pytest.raises(JpoError, match="expected at most one of them"):
        run(CONDITIONAL, "--weak", "--preferences")
    with pytest.raises(JpoError, match="only candidates"):
        run(CONDITIONAL, "--weak", "--count", "3")
    with pytest.raises(JpoError, match="only --conditional"):
        run(CONDITIONAL, "--candidates", "--per-instruction", "2")


def test_conditional_candidates_from_samples(run):
    rows = [{"id": i, "instruction": f"i{i}", "output": f"r{s}"} for i in range(5) for s in range(3)]
    made, printed = run(rows, "--conditional", "--per-instruction", "2")
    assert len(made) == 10 and set(made[0]) == {"instruction", "response_0", "response_1"}
    assert "10 conditional candidates written" in printed
