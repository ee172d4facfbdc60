"""What a run says and whom it tells: header, log lines, evaluations, warnings, callbacks."""

import math
import os
import pty
import re
import subprocess
import sys

import pytest

import jpo
from jpo.errors import JpoError
from jpo.train import Callback
from jpo.train.common import total_steps, warmup_steps
from jpo.train.config import PreferenceConfig, SFTConfig
from jpo.train.progress import duration

FEW = [
    {"i_chosen": f"Say {n}.", "r_chosen": f"It is {n}.", "i_reject": f"Say {n}.", "r_reject": "No."} for n in range(12)
]


def run(config=None, data="example", evaluation=None, callbacks=None, resume=False, **changes):
    base = {"batch_size": 8, "steps": 6, "warmup_steps": 0, "learning_rate": 1e-3, "r": 2}
    config = config or PreferenceConfig(**(base | changes))
    return jpo.PreferenceTrainer(jpo.load("tiny"), data, config, evaluation).train(resume, callbacks)


# ---- defaults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "total", "warmup"),
    [(None, 10, 1), (None, 9, 0), (None, 500, 50), (None, 5000, 100), (7, 10, 7), (0, 500, 0)],
)
def test_warm_up_takes_a_tenth_at_most_unless_asked_for(asked, total, warmup):
    assert warmup_steps(PreferenceConfig(warmup_steps=asked), total) == warmup


@pytest.mark.parametrize(("per_epoch", "steps"), [(3, 3), (1000, 1000), (5000, 1000)])
def test_one_epoch_or_a_thousand_steps_is_the_default(per_epoch, steps):
    """It used to be 1000 steps over however few pairs."""
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), "example", PreferenceConfig())
    trainer._order = lambda: None
    assert trainer._total(type("Order", (), {"steps_per_epoch": per_epoch})) == steps
    assert total_steps(PreferenceConfig(epochs=2.0), per_epoch, 1) == 2 * per_epoch
    assert total_steps(PreferenceConfig(steps=7), per_epoch, 1) == 7


# ---- sentences ------------------------------------------------------------------------------------------------------


def test_the_first_line_counts_records_apart_and_says_steps_and_time(capsys):
    run(data=FEW, evaluation=FEW[:5], steps=None, batch_size=4)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("12 pairs for training, 5 for evaluation; 3 steps of 4 pairs = 1 epoch (the default: ")
    assert re.search(r"; about [\d.]+ s$", first)


def test_named_evaluation_sets(capsys):
    history = run(evaluation={"near": FEW[:3], "far": "example"}, steps=4, eval_steps=2)
    assert {"eval_near_loss", "eval_far_rewards/margins"} <= set(history)
    assert history["eval_near_loss"][0] is None and history["eval_far_loss"][1] is not None
    said = capsys.readouterr().err
    assert "3 (near), 32 (far) for evaluation" in said and "near: loss " in said and "; far: loss " in said


def test_each_evaluation_says_the_change_since_the_start(capsys):
    history = run(evaluation="example", steps=9, eval_steps=3, learning_rate=3e-3)
    said = capsys.readouterr().err
    before = re.search(
        r"^before training: loss ([\d.]+), accuracy ([\d.]+) %, margin ([+-][\d.]+)$", said, re.MULTILINE
    )
    assert float(before[1]) == pytest.approx(math.log(2), abs=1e-4)
    found = re.findall(
        r"^evaluation at step (\d+): loss ([\d.]+) \(([+-][\d.]+)\), accuracy .* margin ", said, re.MULTILINE
    )
    assert [int(step) for step, _, _ in found] == [3, 6, 9]
    for step, loss, change in found:
        assert float(loss) == pytest.approx(history["eval_loss"][int(step) - 1], abs=1e-4)
        assert float(change) == pytest.approx(float(loss) - float(before[1]), abs=2e-4)


def test_a_resumed_run_knows_the_start(tmp_path, capsys):
    out = str(tmp_path / "out")
    run(evaluation="example", steps=4, save_steps=2, output=out)
    run(evaluation="example", steps=8, save_steps=2, output=out, resume=True)
    said = capsys.readouterr().err
    assert said.count("before training") == 1 and "6 of 8 steps" in said
    assert re.search(r"evaluation at step 8: loss [\d.]+ \([+-][\d.]+\)", said)


def test_a_log_file_gets_a_line_every_five_percent(capsys):
    run(steps=60, batch_size=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert 20 <= len(lines) <= 22 and lines[-1].startswith("step 60/60 (100 %)")
    form = r"step \d+/60 \(\d+ %\): loss [\d.]+, margin [+-][\d.]+, \d+ tokens/s, [\d.]+ s left"
    assert all(re.fullmatch(form, line) for line in lines), lines


def test_a_log_file_gets_a_line_every_thirty_seconds(capsys, monkeypatch):
    clock = [0.0]

    def now():
        clock[0] += 7.0
        return clock[0]

    monkeypatch.setattr("jpo.train.progress.time.monotonic", now)
    run(steps=400, batch_size=1, data=FEW[:1], callbacks=[_Stop(12)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert 4 <= len(lines) <= 8  # 12 steps are 3 % of the run, but take 14 s each by this clock


class _Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_log(self, run, row):
        run.stop = run.step >= self.step


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"warmup_steps": 100}, "because warm-up takes 100 of 6 steps"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": 1e-6}, "learning_rate 1e-06 is low for an adapter"),
        ({}, None),
    ],
)
def test_a_rate_that_stays_near_zero_is_warned_about(options, warning, capsys):
    run(**options)
    said = capsys.readouterr().err
    assert (f"warning: {warning}" in said or warning in said) if warning else "warning" not in said


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.14, "2.1 s"), (34.4, "34 s"), (271, "4 min 31 s"), (1800, "30 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_on_a_terminal_a_bar_shows_loss_margin_speed_and_time(tmp_path):
    """Through a pseudo-terminal of 100 columns, as a person sees it."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "jpo", "train", "--model", "tiny", "--data", "example", "--eval-data", "example",
               "--batch-size", "4", "--steps", "30", "--eval-steps", "10", "--output", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    assert child.wait(timeout=60) == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode().replace("\r\n", " ")
    assert re.search(r"30/30 ━+ loss [\d.]+, margin [+-][\d.]+, \d+ tokens/s, [\d.]+ s left", text)
    assert "evaluation at step 10: loss" in text and "32 pairs for training, 32 for evaluation" in text


# ---- callbacks ------------------------------------------------------------------------------------------------------


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, run):
        self.calls.append(("begin", run.total, run.training, dict(run.evaluation)))

    def on_log(self, run, row):
        self.calls.append(("log", row["step"]))

    def on_evaluate(self, run, metrics):
        assert metrics["eval_loss"] == run.history["eval_loss"][-1]
        self.calls.append(("evaluate", run.step))

    def on_save(self, run, folder):
        assert os.path.exists(os.path.join(folder, "manifest.json"))
        self.calls.append(("save", run.step))

    def on_train_end(self, run):
        self.calls.append(("end", run.step))


def test_callbacks_of_the_preference_trainer(tmp_path):
    recorder, rows = Recorder(), []
    run(
        evaluation=FEW,
        steps=4,
        eval_steps=2,
        save_steps=3,
        output=str(tmp_path / "out"),
        callbacks=[recorder, rows.append],
    )
    assert recorder.calls == [
        ("begin", 4, 32, {"": 12}), ("log", 1), ("log", 2), ("evaluate", 2), ("log", 3), ("save", 3), ("log", 4),
        ("evaluate", 4), ("end", 4),
    ]  # fmt: skip
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_callbacks_of_the_sft_trainer(tmp_path):
    recorder = Recorder()
    examples = [{"instruction": "Say it.", "response": f"It is {n}."} for n in range(4)]
    config = SFTConfig(steps=2, batch_size=2, output=str(tmp_path / "out"), learning_rate=1e-3)
    jpo.SFTTrainer(jpo.load("tiny"), examples, config, examples[:1]).train(callbacks=[recorder])
    assert recorder.calls == [("begin", 2, 4, {"": 1}), ("log", 1), ("log", 2), ("evaluate", 2), ("end", 2)]


def test_the_end_is_told_after_a_fault():
    class Fault(Recorder):
        def on_log(self, run, row):
            raise RuntimeError("mine")

    recorder = Fault()
    with pytest.raises(RuntimeError, match="mine"):
        run(callbacks=[recorder])
    assert recorder.calls[-1] == ("end", 1)


def test_what_is_no_callback_is_refused():
    with pytest.raises(JpoError, match="callbacks: expected jpo.train.Callback objects or functions, got 3"):
        run(callbacks=[3])


def test_early_stopping_and_the_best_adapter(tmp_path):
    """A rate so high that the evaluation gets worse: the run ends, and the best adapter stands in out/best."""
    out = tmp_path / "out"
    recorder = Recorder()
    history = run(data=FEW, evaluation="example", steps=200, eval_steps=1, learning_rate=0.3, output=str(out), save_steps=0,
                  early_stopping_patience=2, metric_for_best_model="eval_loss", callbacks=[recorder])  # fmt: skip
    losses = history["eval_loss"]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3 < 200
    lm = jpo.load("tiny")
    lm.load_adapter(out / "best")
    trainer = jpo.PreferenceTrainer(lm, FEW, PreferenceConfig(), "example")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_a_metric_that_is_none_is_refused(tmp_path):
    with pytest.raises(JpoError, match="metric_for_best_model: expected one of eval_loss, .*, got 'eval_los'"):
        run(evaluation=FEW, metric_for_best_model="eval_los")
    with pytest.raises(JpoError, match="needs evaluation data"):
        run(metric_for_best_model="eval_loss")
