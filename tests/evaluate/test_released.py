"""The authors' files in their own form: templated outputs, verdict caches, test sets and pairs, made here word for
word."""

import json

import pytest

from jpo.cli.main import main
from jpo.data.templates import TEXTS
from jpo.errors import DataError
from jpo.evaluate import read_verdicts
from jpo.evaluate.judging import judge_generations
from jpo.evaluate.released import generation, read_known, untemplated, write_verdicts
from jpo.feedback.judges import CallableJudge
from tests.feedback.server import longest

SEP = "<SEP><SEP><SEP><SEP>"
GOLD = [{"instruction_id": f"t3_{n}", "instruction": f"Post {n}", "gold_response": "gold " * 3} for n in range(6)]
# as their inference.py writes it: the prompt, and what follows "### Response:", one object a line in a .json file
OUTPUTS = [
    {
        "instruction": f"### Instructions: You are given a social media post, summarize it accordingly. \nPost: Post {n}\n\n### Response:",
        "outputs": " " + "out " * n,
    }
    for n in range(6)
]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    (tmp_path / "tldr_0.001.json").write_text("".join(json.dumps(row) + "\n" for row in OUTPUTS))
    return str(tmp_path / "tldr_0.001.json"), str(tmp_path / "test.jsonl")


def test_instructions_come_out_of_their_templates():
    for name in ("paper", "tldr", "spaced"):
        for text in ("How?", "a\n\n### Response: b", " spaced ", "{instruction}"):
            assert untemplated(TEXTS[name].partition("{response}")[0].replace("{instruction}", text)) == text, name
    assert untemplated("How?") == "How?" and untemplated("### Instructions: x") == "### Instructions: x"


def test_outputs_are_judged_as_they_are(files, tmp_path, capsys):
    source, gold = files
    out = tmp_path / "judged.jsonl"
    flags = ["evaluate", "--generations", source, "--gold", gold, "--judge", "tests.feedback.server:longest"]
    assert main([*flags, "--output", str(out)]) == 0
    # an output of nothing loses; then 4, 8, 12 characters lose to gold's 15, 16 and 20 win
    assert "tldr, temperature 0.001: wins 2, losses 4, ties 0" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"t3_{n}" for n in range(6)] and rows[0]["instruction"] == "Post 0"
    named = generation({"instruction": "x", "outputs": "y", "model": "m"})
    assert named == {"instruction": "x", "output": "y", "model": "m"}


def test_verdict_caches_in_and_out(files, tmp_path, capsys):
    source, gold = files
    cache = tmp_path / "master.json"
    known = {
        f"{OUTPUTS[n]['instruction']}{SEP}{GOLD[n]['gold_response']}{SEP}{OUTPUTS[n]['outputs']}": v
        for n, v in ((3, "model"), (4, "equal"))
    }
    cache.write_text(json.dumps({"dove": known}))
    asked = []
    judge = CallableJudge(lambda prompt: asked.append(prompt) or longest(prompt), "callable:x")
    rows, summary, _ = judge_generations(source, gold, judge, tmp_path / "o.jsonl", known=read_known([cache]))
    assert summary.asked == len(asked) == 2 * 3 and not any(
        "Post 3" in prompt or "Post 4" in prompt for prompt in asked
    )
    assert [row["feedback"] for row in rows] == [1, 1, 1, 0, 2, 0] and rows[3]["annotator"] == "verdict cache"
    out = tmp_path / "out.json"
    assert write_verdicts(out, rows) == 6 and write_verdicts(out, rows) == 6
    assert read_verdicts(out)["tldr"].rate == pytest.approx((2 + 0.5) / 6)
    flags = ["evaluate", "--generations", source, "--gold", gold, "--judge", "nowhere:never"]
    assert (
        main([*flags, "--known-verdicts", str(out), "--output", str(tmp_path / "p.jsonl")]) == 1
    )  # the judge must be one
    flags[-1] = "tests.feedback.server:longest"
    assert main([*flags, "--known-verdicts", str(out), "--output", str(tmp_path / "p.jsonl")]) == 0
    assert "0 questions asked now" in capsys.readouterr().out
    cache.write_text(json.dumps({"a": known, "b": {key: "gold" for key in known}}))
    with pytest.raises(DataError, match="master.json: model 'b': another verdict than before"):
        read_known([cache])
