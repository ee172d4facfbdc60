"""--report-to: each reporter's own package reads back what was written, all of it on this machine; faults are told."""

import json
import math
import os
import sqlite3
import subprocess
import sys

import pytest

import jpo
from jpo.errors import JpoError
from jpo.train import reports
from jpo.train.config import REPORTER_NAMES, PreferenceConfig

LOSSES = {"loss", "rewards/margins", "learning_rate", "step_seconds"}


def report(to, steps=3, **changes):
    """Three steps on "tiny", evaluated before the first and behind the last."""
    base = {"batch_size": 8, "steps": steps, "warmup_steps": 0, "learning_rate": 1e-3, "r": 2, "report_to": to}
    resume = changes.pop("resume", False)
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), "example", PreferenceConfig(**(base | changes)), "example")
    return trainer.train(resume)


def in_own_process(to, out, environment, **changes):
    """The packages keep a state of their own, so each run has a process; the losses of its steps."""
    code = "import json, sys; from tests.train.test_reports import report\n" + (
        f"history = report({to!r}, output={str(out)!r}, **{changes!r})\n"
        "assert not {'torch', 'tensorflow', 'tensorboardX'} & set(sys.modules)\n"
        "print('LOSSES', json.dumps([history['loss'], history['eval_loss'][-1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOSSES ")]
    return json.loads(lines[0].removeprefix("LOSSES "))


def test_tensorboard(tmp_path):
    """By TensorBoard's own reader."""
    pytest.importorskip("tensorboard")
    losses, last = in_own_process("tensorboard", tmp_path / "out", {})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert LOSSES <= set(read.Tags()["scalars"])
    events = read.Scalars("loss")
    assert [event.step for event in events] == [1, 2, 3]
    assert [event.value for event in events] == pytest.approx(losses, rel=1e-6)
    evaluated = read.Scalars("eval_loss")
    assert [event.step for event in evaluated] == [0, 3]
    assert [event.value for event in evaluated] == pytest.approx([math.log(2), last], rel=1e-5)


def records_of(data):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length, kind) behind 7 bytes."""
    at, part = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # no room for a head: the rest of a block is empty
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, last
            yield part
            part = b""


def test_wandb_offline(tmp_path):
    """By the messages that wandb's own files hold."""
    pytest.importorskip("wandb")
    losses, last = in_own_process("wandb", tmp_path / "out", {"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    from wandb.proto import wandb_internal_pb2

    (path,) = (tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb")
    rows, config, project = [], {}, None
    for data in records_of(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        if record.HasField("run"):
            project = record.run.project
            config |= {item.key: item.value_json for item in record.run.config.update}
    assert project == "jpo" and json.loads(config["learning_rate"]) == 1e-3
    steps = [row for row in rows if "loss" in row]
    assert [row["_step"] for row in steps] == [1, 2, 3] and set(steps[0]) >= LOSSES
    assert [row["loss"] for row in steps] == pytest.approx(losses)
    assert [row["_step"] for row in rows if "eval_loss" in row] == [0, 3] and rows[-1]["eval_loss"] == last


def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    """By MLflow's client, out of a file store; the options are parameters; a resumed run goes on in the same one."""
    pytest.importorskip("mlflow")
    place = {"MLFLOW_TRACKING_URI": (tmp_path / "runs").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    losses, _ = in_own_process("mlflow", tmp_path / "out", place, save_steps=2)
    more, last = in_own_process("mlflow", tmp_path / "out", place, save_steps=2, steps=4, resume=True)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("jpo").experiment_id])
    steps, evaluated = (
        sorted((found.step, found.value) for found in client.get_metric_history(run.info.run_id, name))
        for name in ("loss", "eval_loss")
    )
    status, rate = run.info.status, run.data.params["learning_rate"]
    assert status == "FINISHED" and float(rate) == 1e-3
    assert dict(steps) == pytest.approx(dict(enumerate(more, 1))) and more[:2] == losses[:2]
    assert [step for step, _ in evaluated] == [0, 3, 4] and evaluated[-1][1] == pytest.approx(last)


def test_trackio_in_a_folder(tmp_path):
    """Out of the SQLite file that Trackio keeps."""
    pytest.importorskip("trackio")
    losses, last = in_own_process("trackio", tmp_path / "out", {"TRACKIO_DIR": str(tmp_path / "db")})
    (path,) = (tmp_path / "db").glob("*.db")
    with sqlite3.connect(path) as database:
        stored = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    rows = [(step, json.loads(text)) for name, step, text in stored if name == "out"]
    steps = [(step, row) for step, row in rows if "loss" in row]
    assert [step for step, _ in steps] == [1, 2, 3] and set(steps[0][1]) >= LOSSES
    assert [row["loss"] for _, row in steps] == pytest.approx(losses)
    assert [step for step, row in rows if "eval_loss" in row] == [0, 3] and rows[-1][1]["eval_loss"] == last


# ---- options and faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTER_NAMES[1:])
def test_a_missing_package_names_the_command(name, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    with pytest.raises(JpoError, match=rf"pip install 'jpo\[{name}\]'"):
        report(name, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_every_name_has_a_reporter():
    assert set(REPORTER_NAMES) == {"none", *reports.REPORTERS}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"report_to": "none", "tensorboard": True}, ["tensorboard"]),
        ({"report_to": "wandb, tensorboard", "tensorboard": True}, ["wandb", "tensorboard"]),
        ({"report_to": ["mlflow", "trackio"]}, ["mlflow", "trackio"]),
        ({"report_to": []}, []),
    ],
)
def test_names(given, expected):
    assert PreferenceConfig(**given).reporters == expected
    assert PreferenceConfig.from_dict(given).reporters == expected


def test_an_unknown_name_is_refused():
    with pytest.raises(
        JpoError, match="report_to: expected some of none, tensorboard, wandb, mlflow, trackio, got 'wb'"
    ):
        PreferenceConfig(report_to="none,wb")


class _Fake(reports.Reporter):
    package, title, remedy = "json", "Fake", "mend it"

    def start(self, run, known):
        self.seen = []
        return None

    def log(self, values, step):
        self.seen.append(step)
        if step == 2:
            raise ConnectionError("the server has gone\nat length")

    def finish(self, whole):
        self.seen.append("end")


def test_a_fault_on_the_way_is_told_once_and_the_run_goes_on(monkeypatch, tmp_path, capsys):
    made = []
    monkeypatch.setitem(reports.REPORTERS, "trackio", lambda config: made.append(_Fake(config)) or made[0])
    history = report("trackio", steps=4, output=str(tmp_path / "out"))
    assert len(history["loss"]) == 4 and made[0].seen == [0, 1, 2]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "Fake" in line]
    assert warnings == [
        f"warning: Fake takes no more reports: the server has gone; {tmp_path}/out/metrics.jsonl holds all of it"
    ]


def test_a_fault_at_the_start_stops_before_the_first_step(monkeypatch, tmp_path):
    class Closed(_Fake):
        def start(self, run, known):
            raise ConnectionError("nobody is logged in")

    monkeypatch.setitem(reports.REPORTERS, "trackio", Closed)
    with pytest.raises(JpoError, match="report_to json: nobody is logged in; mend it"):
        report("trackio", output=str(tmp_path / "out"))
    monkeypatch.undo()
    assert len(report("none", steps=1, output=str(tmp_path / "out"))["loss"]) == 1  # the same output serves again
