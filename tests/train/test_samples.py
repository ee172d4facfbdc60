"""Samples during training and how often a judge prefers them; compute_metrics; both followed like any other metric."""

import json
import os

import numpy as np
import pytest

import jpo
from jpo.cli.main import main
from jpo.data.readers import read_records
from jpo.errors import JpoError
from jpo.train import Callback

PAIRS = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}", "rejected": f"No {'no ' * i}"} for i in range(5)]
SFT = [{"instruction": f"Question {i}?", "response": f"Answer {i}"} for i in range(4)]


def options(path, **changes):
    given = {"steps": 4, "eval_steps": 2, "batch_size": 5, "learning_rate": 3e-2, "warmup_steps": 0, "save_steps": 2}
    given |= {"eval_samples": 3, "eval_max_new_tokens": 4, "output": str(path), "seed": 1}
    return given | changes


def longer(prompt):
    """A judge: the side whose response has more characters."""
    mark = next(line for line in prompt.splitlines() if line.startswith("==") and line.endswith("=="))
    parts = prompt.split(mark)
    a, b = (
        next(parts[n + 1] for n, part in enumerate(parts) if part.endswith(f"Response {letter}:\n")) for letter in "AB"
    )
    a, b = a.strip(), b.strip()
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


class Watch(Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.rows, self.evaluations = [], []

    def on_samples(self, run, rows):
        self.rows.append(rows)

    def on_evaluate(self, run, metrics):
        self.evaluations.append(metrics)


def test_samples_are_written_and_told_and_change_nothing(tmp_path):
    weights = []
    for count in (3, 0):
        lm, watch = jpo.load("tiny"), Watch()
        config = jpo.PreferenceConfig(**options(tmp_path / str(count), eval_samples=count))
        jpo.PreferenceTrainer(lm, PAIRS, config, PAIRS).train(callbacks=[watch])
        weights.append(lm.trainable.params.copy())
        assert [len(rows) for rows in watch.rows] == ([3, 3, 3] if count else [])
    assert np.array_equal(*weights)
    rows = read_records(str(tmp_path / "3" / "samples.jsonl"))
    assert [row["step"] for row in rows] == [0] * 3 + [2] * 3 + [4] * 3
    assert [row["instruction"] for row in rows[:3]] == ["Question 0?", "Question 1?", "Question 2?"]
    prompt = "### Instructions: Question 1?\n\n### Response:"
    assert rows[7]["output"] == _last(tmp_path / "3", prompt) and rows[1]["output"] != rows[7]["output"]
    assert not os.path.exists(tmp_path / "0" / "samples.jsonl")


def _last(folder, prompt):
    lm = jpo.load("tiny")
    lm.load_adapter(folder)
    return lm.generate([prompt], temperature=0.0, max_new_tokens=4)[0][0].text.strip()


@pytest.mark.parametrize("against", ["reference", "chosen"])
def test_the_win_rate_is_the_judge_s(tmp_path, against):
    config = options(tmp_path / "run", eval_judge=f"{__name__}:longer", eval_against=against)
    history = jpo.PreferenceTrainer(jpo.load("tiny"), PAIRS, jpo.PreferenceConfig(**config), PAIRS).train()
    rows = read_records(str(tmp_path / "run" / "samples.jsonl"))
    for step in (2, 4):
        chosen = [row for row in rows if row["step"] == step]
        lengths = [(len(row["output"]), len(row["other"])) for row in chosen]
        scores = [1 if a > b else 0 if a < b else 0.5 for a, b in lengths]
        assert [{0: 1, 1: 0, 2: 0.5}[row["feedback"]] for row in chosen] == scores
        assert history["eval_win_rate"][step - 1] == pytest.approx(np.mean(scores))
    if against == "chosen":
        assert [row["other"] for row in rows[:3]] == ["Answer 0", "Answer 1", "Answer 2"]
    else:  # the model before training is the reference itself
        assert {row["feedback"] for row in rows[:3]} == {2} and all(row["other"] == row["output"] for row in rows[:3])


def test_a_resumed_run_goes_on_with_its_samples(tmp_path):
    def run(name, resume=False, **changes):
        config = jpo.SFTConfig(**options(tmp_path / name, full=True, eval_judge=f"{__name__}:longer", **changes))
        jpo.SFTTrainer(jpo.load("tiny"), SFT, config, SFT).train(resume=resume)
        return (tmp_path / name / "samples.jsonl").read_text()

    whole = run("whole")
    run("cut", steps=2, lr_scheduler_type="constant")
    with open(tmp_path / "cut" / "samples.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "instruction": "of a lost step", "output": "", "temperature": 0}) + "\n{")
    again = run("cut", resume=True, steps=4, lr_scheduler_type="constant")
    assert whole.count("\n") == again.count("\n") == 9 and "lost" not in again
    assert whole.splitlines()[:3] == again.splitlines()[:3]  # what a model trained whole is compared with


def test_the_best_checkpoint_and_the_command_line_know_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges.py").write_text("def first(prompt):\n    return 'A'\n")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    command = ["train", "--model", "tiny", "--data", "pairs.jsonl", "--eval-data", "pairs.jsonl", "--output", "out"]
    command += ["--steps", "2", "--eval-steps", "1", "--eval-samples", "2", "--eval-max-new-tokens", "3"]
    command += ["--eval-judge", "judges:first", "--metric-for-best-model", "eval_win_rate", "--learning-rate", "0.01"]
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "sample at step 2: 'Question 0?' -> " in shown and "win-rate 50.0 %" in shown
    assert (tmp_path / "out" / "best" / "adapter_model.safetensors").exists()
    assert [json.loads(line)["eval_win_rate"] for line in open("out/metrics.jsonl")] == [0.5, 0.5]


def test_what_cannot_be_is_said_before_the_first_step(tmp_path):
    with pytest.raises(JpoError, match="eval_judge: judges the answers of --eval-samples N"):
        jpo.PreferenceConfig(eval_judge="local")
    with pytest.raises(JpoError, match="eval_against: expected one of reference, chosen"):
        jpo.PreferenceConfig(eval_against="gold")
    lm = jpo.load("tiny")
    with pytest.raises(JpoError, match=r"eval_samples: needs evaluation data"):
        jpo.PreferenceTrainer(lm, PAIRS, jpo.PreferenceConfig(**options(tmp_path / "a"))).train()
    for judge, message in (("openai", "needs --model|needs eval_judge_model"), ("x", "expected openai, local")):
        config = jpo.PreferenceConfig(**options(tmp_path / "b", eval_judge=judge))
        with pytest.raises(JpoError, match=message):
            jpo.PreferenceTrainer(lm, PAIRS, config, PAIRS).train()
    assert not os.path.exists(tmp_path / "a") and not os.path.exists(tmp_path / "b")


def broken(prompt):
    """A judge that brings no verdict."""
    raise ValueError("out of order")


def test_a_judge_without_verdicts_ends_no_run(tmp_path, capsys):
    config = options(
        tmp_path / "run",
        eval_judge=f"{__name__}:broken",
        metric_for_best_model="eval_win_rate",
        eval_against="chosen",
    )
    lm = jpo.load("tiny")
    history = jpo.PreferenceTrainer(lm, PAIRS, jpo.PreferenceConfig(**config), PAIRS).train()
    assert len(history["loss"]) == 4 and "3 of 3 samples got no verdict: ValueError" in capsys.readouterr().err
    assert {row["feedback"] for row in read_records(str(tmp_path / "run" / "samples.jsonl"))} == {None}


@pytest.mark.parametrize("loss", ["sigmoid", "aot"])
def test_compute_metrics_over_margins(tmp_path, loss):
    seen = []

    def least(evaluation):
        seen.append(evaluation)
        return {"least_margin": evaluation.margins.min()}

    config = jpo.PreferenceConfig(
        **options(tmp_path / "run", eval_samples=0, loss=loss, batch_size=2, token_budget=40, save_steps=0)
    )
    sets = {"one": PAIRS, "two": PAIRS[::-1]}
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), PAIRS, config, sets, compute_metrics=least)
    history = trainer.train()
    one, two = seen[-2:]
    assert (one.name, two.name) == ("one", "two") and one.margins.shape == (5,)
    np.testing.assert_allclose(one.margins, two.margins[::-1], atol=1e-6)
    np.testing.assert_allclose(one.margins, one.rewards_chosen - one.rewards_rejected)
    assert history["eval_one_least_margin"][-1] == one.margins.min()
    assert history["eval_one_rewards/margins"][-1] == pytest.approx(one.margins.mean())
