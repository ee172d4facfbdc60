"""jpo train and jpo sft: evaluation sets by name, on the command line and in YAML."""

import json
import os

import pytest

from jpo.cli.main import main
from jpo.cli.training import evaluation_sets
from jpo.errors import JpoError

PAIR = {"i_chosen": "Say it.", "r_chosen": "It is so.", "i_reject": "Say it.", "r_reject": "No."}


@pytest.fixture
def held(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held.jsonl").write_text(json.dumps(PAIR) + "\n")
    return "held.jsonl"


def last_row(path):
    return json.loads(path.read_text().splitlines()[-1])


def names_of(row):
    return {key for key in row if key.startswith("eval_") and key.endswith("loss")}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ([], None),
        ("a.jsonl", {"": ["a.jsonl"]}),
        (["a.jsonl", "b.jsonl"], {"": ["a.jsonl", "b.jsonl"]}),
        (["x=a.jsonl", "y=b=c.jsonl"], {"x": ["a.jsonl"], "y": ["b=c.jsonl"]}),
        (["a.jsonl", "x=example", "x=b.jsonl"], {"": ["a.jsonl"], "x": ["example", "b.jsonl"]}),
        (["dir/of=x/a.jsonl"], {"": ["dir/of=x/a.jsonl"]}),
        ({"x": "a.jsonl", "y": ["b.jsonl", "c.jsonl"]}, {"x": ["a.jsonl"], "y": ["b.jsonl", "c.jsonl"]}),
    ],
)
def test_sets(given, expected):
    assert evaluation_sets(given) == expected


def test_a_file_of_that_very_name_is_a_path(held, tmp_path):
    (tmp_path / "x=held.jsonl").write_text("")
    assert evaluation_sets(["x=held.jsonl"]) == {"": ["x=held.jsonl"]}


@pytest.mark.parametrize("given", [[3], {"x": 3}, {3: "a.jsonl"}, [{"x": "a.jsonl"}]])
def test_what_is_no_set_is_refused(given):
    with pytest.raises(JpoError, match="eval_data: expected files, NAME=FILE"):
        evaluation_sets(given)


def test_named_sets_have_metrics_of_their_own(held, tmp_path):
    flags = ["--model", "tiny", "--data", "example", "--batch-size", "8", "--steps", "2", "--output", "out"]
    named = ["--eval-data", f"held={held}", "--eval-data", "same=example", "--eval-data", "example"]
    assert main(["train", *flags, *named, "--metric-for-best-model", "eval_held_loss"]) == 0
    row = last_row(tmp_path / "out" / "metrics.jsonl")
    assert names_of(row) == {"eval_loss", "eval_held_loss", "eval_same_loss"}
    assert row["eval_same_loss"] == pytest.approx(row["eval_loss"]) != row["eval_held_loss"]
    assert "eval_held_rewards/margins" in row and (tmp_path / "out" / "best" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("text", ["eval_data: {held: held.jsonl}", "eval_data: [held=held.jsonl]"])
def test_yaml_names_sets_too(text, held, tmp_path):
    (tmp_path / "run.yaml").write_text(f"model: tiny\ndata: example\nsteps: 1\noutput: out\n{text}\n")
    assert main(["train", "--config", "run.yaml"]) == 0
    assert names_of(last_row(tmp_path / "out" / "metrics.jsonl")) == {"eval_held_loss"}


def test_sft_has_named_sets(held, tmp_path):
    (tmp_path / "sft.jsonl").write_text(json.dumps({"instruction": "Say it.", "response": "It is so."}) + "\n")
    flags = ["--model", "tiny", "--data", "sft.jsonl", "--steps", "1", "--output", "out", "--eval-data", "a=sft.jsonl"]
    assert main(["sft", *flags]) == 0
    assert names_of(last_row(tmp_path / "out" / "metrics.jsonl")) == {"eval_a_loss"}


def test_large_files_are_encoded_beside_the_output(held, tmp_path, monkeypatch, capsys):
    """Above LARGE_BYTES the records do not stand in memory; the result is the same, and a dry run leaves nothing."""
    flags = ["--model", "tiny", "--data", held, "--eval-data", held, "--steps", "1"]
    assert main(["train", *flags, "--output", "plain"]) == 0
    monkeypatch.setattr("jpo.cli.training.LARGE_BYTES", 100)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    before = sorted(os.listdir("."))
    assert main(["train", *flags, "--dry-run"]) == 0
    assert "encoded into" in capsys.readouterr().out
    assert sorted(os.listdir(".")) == before and os.listdir("temporary") == []
    assert main(["train", *flags, "--output", "large"]) == 0
    assert any(name.startswith("pairs-") for name in os.listdir("large/cache"))
    assert (tmp_path / "large/adapter_model.safetensors").read_bytes() == (
        tmp_path / "plain/adapter_model.safetensors"
    ).read_bytes()
    assert last_row(tmp_path / "large/metrics.jsonl")["loss"] == last_row(tmp_path / "plain/metrics.jsonl")["loss"]
    assert main(["train", *flags, "--output", "elsewhere", "--cache-dir", "mine"]) == 0
    assert os.listdir("mine") and "cache" not in os.listdir("elsewhere")
