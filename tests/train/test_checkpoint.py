"""Checkpoints under damage, faults of the file system, kills and second runs: what stood still stands, and is said."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpo
from jpo.disk import sha256_of
from jpo.errors import FormatError, JpoError
from jpo.train import checkpoint
from jpo.train.config import PreferenceConfig
from tests.peak_memory import grown

STATE, OPTIMIZER, MANIFEST = checkpoint.STATE, checkpoint.OPTIMIZER, checkpoint.MANIFEST

# the sanitizers' shadow memory counts as the process's own
UNSANITIZED = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="memory is measured")


def config(output, **changes):
    base = {"batch_size": 8, "steps": 6, "warmup_steps": 1, "learning_rate": 1e-3, "save_steps": 2, "r": 2}
    return PreferenceConfig(**(base | {"output": str(output)} | changes))


def run(output, resume=False, **changes):
    return jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(output, **changes)).train(resume)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps with checkpoints of steps 2 and 4, and its final adapter's bytes."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    run(folder)
    return folder, (folder / "adapter_model.safetensors").read_bytes()


def rewrite(folder, name, change, digest=False):
    """Changes a file of a checkpoint; with `digest` its entry in the manifest too, as an attacker or a fault of ours
    would."""
    path = folder / name
    change(path)
    if digest:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        (folder / MANIFEST).write_text(json.dumps(manifest))


def zero_half(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def tensors(**changed):
    def change(path):
        stored = load_file(path)
        save_file({name: value for name, value in (stored | changed).items() if value is not None}, path)

    return change


def edited(**changed):
    def change(path):
        stored = json.loads(path.read_text()) | changed
        path.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))

    return change


DAMAGE = {
    "half of the moments zeroed": (OPTIMIZER, zero_half, False, "not what was written"),
    "a flipped bit": (OPTIMIZER, flip, False, "not what was written"),
    "a flipped bit of the adapter": ("adapter_model.safetensors", flip, False, "not what was written"),
    "truncated": (OPTIMIZER, lambda path: os.truncate(path, 100), False, "has 100 bytes"),
    "truncated, digest and all": (OPTIMIZER, lambda path: os.truncate(path, 100), True, "not a usable safetensors"),
    "empty": (STATE, lambda path: path.write_bytes(b""), False, "has 0 bytes"),
    "missing": (OPTIMIZER, os.remove, False, "is missing"),
    "no manifest": (MANIFEST, os.remove, False, "is missing"),
    "manifest of bad JSON": (MANIFEST, lambda path: path.write_text('{"files": '), False, "line 1"),
    "manifest of another step": (MANIFEST, edited(step=2), False, "is of step 2"),
    "manifest without files": (MANIFEST, edited(files=[]), False, "key files"),
    "state of bad JSON": (STATE, lambda path: path.write_text("{"), True, "line 1"),
    "state of another step": (STATE, edited(step=2), True, "is of step 2"),
    "state without tokens": (STATE, edited(num_tokens=None), True, "key num_tokens"),
    "state is a list": (STATE, lambda path: path.write_text("[]"), True, "expected a JSON object"),
    "moments of shape (1,)": (OPTIMIZER, tensors(m=np.zeros(1, np.float32)), True, "tensor m: expected float32"),
    "moments of another type": (OPTIMIZER, tensors(v=np.zeros(1)), True, "tensor v: expected float32"),
    "no moments": (OPTIMIZER, tensors(v=None), True, "tensor v is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(name, trained, tmp_path, capsys):
    file, change, digest, message = DAMAGE[name]
    whole, final = trained
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    rewrite(out / "checkpoint-4", file, change, digest)
    run(out, resume=True)
    said = capsys.readouterr().err
    assert message in said and "checkpoint-4 is damaged" in said and "going on from" in said and "checkpoint-2" in said
    assert (out / "checkpoint-4.damaged").is_dir() and checkpoint.finished(str(out)) == [2, 4]
    assert (out / "adapter_model.safetensors").read_bytes() == final


def test_nan_in_a_checkpoint_is_damage(trained, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)

    def poison(path):
        stored = load_file(path)
        stored["params"][3] = np.nan
        save_file(stored, path)

    rewrite(out / "checkpoint-4", OPTIMIZER, poison, digest=True)
    run(out, resume=True)
    assert "tensor params holds NaN" in capsys.readouterr().err


def test_files_of_another_step_are_damage(trained, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    shutil.copyfile(out / "checkpoint-2" / OPTIMIZER, out / "checkpoint-4" / OPTIMIZER)
    run(out, resume=True)
    assert "not what was written" in capsys.readouterr().err


def test_all_damaged_is_an_error_that_names_them(trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    for step in (2, 4):
        flip(out / f"checkpoint-{step}" / OPTIMIZER)
    with pytest.raises(JpoError, match=r"no checkpoint can be used .*checkpoint-4.*checkpoint-2.*another output"):
        run(out, resume=True)
    assert checkpoint.finished(str(out)) == [2, 4]


def test_a_checkpoint_of_an_earlier_version_resumes(trained, tmp_path):
    """No manifest, no format, no storage, an adapter's fields as the config said them, warm-up as a number."""
    whole, final = trained
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    os.remove(out / "checkpoint-4" / MANIFEST)
    path = out / "checkpoint-4" / STATE
    state = json.loads(path.read_text())
    del state["format"]
    for key in ("storage", "check_memory", "metric_for_best_model"):
        state["mark"].pop(key, None)
    state["mark"] |= {"r": "8", "warmup_steps": "1"}
    path.write_text(json.dumps(state))
    run(out, resume=True)
    assert (out / "adapter_model.safetensors").read_bytes() == final


def test_old_warm_up_is_kept_where_it_was_the_default(trained, tmp_path):
    out = tmp_path / "out"
    run(out, warmup_steps=3)
    final = (out / "adapter_model.safetensors").read_bytes()
    for step in (2, 4):
        os.remove(out / f"checkpoint-{step}" / MANIFEST)
        path = out / f"checkpoint-{step}" / STATE
        state = json.loads(path.read_text())
        del state["format"]
        path.write_text(json.dumps(state))
    run(out, resume=True, warmup_steps=None)
    assert (out / "adapter_model.safetensors").read_bytes() == final


def test_the_same_step_again_never_removes_the_finished_one(trained, tmp_path, monkeypatch):
    """Ctrl-C just after a checkpoint, with save_total_limit=1: it used to be removed before it was written again."""
    out = tmp_path / "out"
    removed = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, *a, **k: removed.append(os.path.basename(path)))

    class Stop(jpo.train.Callback):
        def on_save(self, run, folder):
            raise KeyboardInterrupt

    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(out, save_total_limit=1))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(callbacks=[Stop()])
    assert checkpoint.finished(str(out)) == [2] and "checkpoint-2" not in removed
    checkpoint.load(str(out / "checkpoint-2"))


def test_a_kill_at_any_rename_or_removal_leaves_a_sound_checkpoint(tmp_path):
    """Every call that changes names is a place to die; each time the run resumes to the same bytes."""
    run(tmp_path / "whole", save_total_limit=1)
    final = (tmp_path / "whole" / "adapter_model.safetensors").read_bytes()
    code = """
import os, shutil, sys
import jpo
from tests.train.test_checkpoint import run
count, at = [0], int(sys.argv[2])
def dying(function):
    def call(*a, **k):
        count[0] += 1
        if count[0] == at: os._exit(9)
        return function(*a, **k)
    return call
for module, name in ((os, "rename"), (os, "replace"), (shutil, "rmtree"), (os, "unlink"), (os, "rmdir")):
    setattr(module, name, dying(getattr(module, name)))
run(sys.argv[1], save_total_limit=1)
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    died = 0
    for at in range(1, 60, 3):
        out = tmp_path / f"out{at}"
        result = subprocess.run(
            [sys.executable, "-c", code, str(out), str(at)], cwd=root, capture_output=True, text=True
        )
        if result.returncode == 0:
            break
        assert result.returncode == 9, result.stderr
        died += 1
        had = checkpoint.finished(str(out))
        rows = (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0
        assert had or rows <= 2, "a checkpoint was written, and none is left"
        run(out, resume=True, save_total_limit=1)
        assert (out / "adapter_model.safetensors").read_bytes() == final
    assert died >= 5


def test_a_full_disk_is_named_and_the_old_state_stands(tmp_path):
    """A limit on the size of files, so that the write itself fails, as on a full disk."""
    code = """
import resource, signal, sys
import jpo
from tests.train.test_checkpoint import config
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
class Fill(jpo.train.Callback):
    def on_save(self, run, folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(sys.argv[1], save_total_limit=1)).train(callbacks=[Fill()])
except jpo.JpoError as error:
    print(error)
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    out = tmp_path / "out"
    result = subprocess.run([sys.executable, "-c", code, str(out)], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "checkpoint-4: cannot be written: File too large" in result.stdout
    assert "checkpoint-2 still stands" in result.stdout and "--resume" in result.stdout
    assert sorted(name for name in os.listdir(out) if "checkpoint" in name) == ["checkpoint-2"]
    run(out, resume=True)


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("place", ["fsync", "replace", "makedirs"])
def test_faults_of_the_file_system_are_named(fault, place, tmp_path, monkeypatch):
    out = tmp_path / "out"
    calls = {"checkpoint": False}
    honest = getattr(os, place)

    class Break(jpo.train.Callback):
        def on_save(self, run, folder):
            calls["checkpoint"] = True

    def failing(*arguments, **options):
        if calls["checkpoint"]:
            raise OSError(fault, os.strerror(fault))
        return honest(*arguments, **options)

    monkeypatch.setattr(os, place, failing)
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(out, save_total_limit=1))
    with pytest.raises(JpoError, match=os.strerror(fault)):
        trainer.train(callbacks=[Break()])
    monkeypatch.undo()
    assert 2 in checkpoint.finished(str(out))
    checkpoint.load(str(out / "checkpoint-2"))


def command(output, *more):
    return [sys.executable, "-m", "jpo", "train", "--model", "tiny", "--data", "example", "--output", str(output),
            "--steps", "100000", "--batch-size", "4", "--save-steps", "0", *more]  # fmt: skip


def started(output, *more):
    """A long training run, when its fourth step is done."""
    child = subprocess.Popen(
        command(output, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    )
    metrics = output / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            return child
        time.sleep(0.05)
    child.kill()
    raise AssertionError("the run did not start")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_leave_a_checkpoint_and_say_how_to_go_on(number, status, tmp_path):
    out = tmp_path / "out"
    child = started(out)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == status
    last = errors.decode().splitlines()[-1]
    (step,) = checkpoint.finished(str(out))
    assert f"step {step} of 100000 is saved: go on with --resume --output {out}" in last and "Traceback" not in last
    checkpoint.load(str(out / f"checkpoint-{step}"))


def test_one_run_for_each_output(tmp_path):
    out = tmp_path / "out"
    child = started(out)
    try:
        for more in ([], ["--resume"]):
            second = subprocess.run(command(out, *more), capture_output=True, text=True, timeout=60)
            assert second.returncode == 1 and "another process trains there" in second.stderr
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode == 130 and checkpoint.finished(str(out))


def test_load_reports_a_folder_that_is_none(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(FormatError, match="trainer_state.json"):
        checkpoint.load(str(tmp_path / "checkpoint-3"))


@UNSANITIZED
def test_peak_of_a_save_holds_no_second_copy(tmp_path):
    """The optimizer's vectors go to the file straight from memory."""
    vectors = {name: np.ones(1 << 22, np.float32) for name in ("params", "m", "v")}
    with grown() as growth:
        checkpoint._write_tensors(str(tmp_path / "o.safetensors"), vectors)
    assert growth.bytes < 8 << 20
    stored = load_file(tmp_path / "o.safetensors")
    assert all(np.array_equal(stored[name], value) for name, value in vectors.items())
