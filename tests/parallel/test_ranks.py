"""Training over MPI: the same bits for any number of ranks, one message and a quick end where one fails, checkpoints
that any number of ranks goes on with."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from jpo.parallel.launch import _mpiexec

pytest.importorskip("mpi4py", reason="mpi4py is missing: pip install 'jpo[mpi]'")
ROOT = Path(__file__).resolve().parents[2]
TRAIN = [
    "train",
    "--model",
    "tiny",
    "--data",
    "example",
    "--batch-size",
    "8",
    "--steps",
    "8",
    "--learning-rate",
    "1e-3",
]
TRAIN += ["--save-steps", "2", "--r", "4", "--lora-dropout", "0.1", "--compute", "float32"]


def environment(**more):
    return (
        os.environ
        | {"JPO_PIN": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        | more
    )


def started(ranks, *command, **more):
    return subprocess.Popen(
        [_mpiexec(), "-n", str(ranks), sys.executable, *command],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def jpo_alone(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jpo", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_any_number_of_ranks_gives_the_same_bits(tmp_path):
    """Losses of single pairs and coupled ones, SFT, adapters and every weight, each compute type; metrics too."""
    found = {}
    for ranks in (1, 4):
        path = tmp_path / f"{ranks}.json"
        script = str(ROOT / "tests" / "parallel" / "cases.py")
        if ranks == 1:  # no launcher at all
            subprocess.run([sys.executable, script, path], cwd=ROOT, env=environment(), check=True, capture_output=True)
        else:
            status, _, err = ended(started(ranks, script, str(path)), 300)
            assert status == 0, err
        found[ranks] = json.loads(path.read_text())
    assert [found[ranks]["ranks"] for ranks in found] == [1, 4]
    for name, expected in found[1]["cases"].items():
        assert found[4]["cases"][name] == expected, name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of eight steps in eight slots by one process: its final adapter."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = jpo_alone(*TRAIN, "--slots", "8", "--output", str(out))
    assert done.returncode == 0, done.stderr
    return (out / "adapter_model.safetensors").read_bytes()


def rows(out):
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_rows(process, out, count, seconds=60):
    end = time.monotonic() + seconds
    while process.poll() is None and rows(out) < count:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.01)


def test_the_option_ranks_starts_the_same_run(tmp_path, undisturbed):
    done = jpo_alone(*TRAIN, "--output", str(tmp_path / "out"), "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("32 of 32 records kept") == 1  # the first rank alone speaks
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == undisturbed


def children_of(parent):
    """Processes below `parent` that train, by the command line of each."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            above = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        found.append((int(folder.name), above, name))
    below, grown = {parent}, True
    while grown:
        more = {pid for pid, above, _ in found if above in below} - below
        below, grown = below | more, bool(more)
    return [pid for pid, _, name in found if pid in below and b"\0train\0" in name and b"mpiexec" not in name]


def broken_off(folder, count, stop):
    """(output, status, stderr) of a run on two ranks that `stop` ended after `count` steps. The run is short: where
    the machine is so busy that it was done before, another is begun."""
    for attempt in range(5):
        out = folder / f"out{attempt}"
        process = started(2, "-m", "jpo", *TRAIN, "--output", str(out))
        wait_for_rows(process, out, count)
        if process.poll() is None:
            stop(process)
        status, _, err = ended(process)
        if status != 0:
            break
    return out, status, err


def test_a_killed_rank_ends_the_job_and_any_number_goes_on(tmp_path, undisturbed):
    def kill_one(process):
        for rank in random.sample(children_of(process.pid), 1):
            os.kill(rank, signal.SIGKILL)

    out, status, err = broken_off(tmp_path, 3, kill_one)
    assert status != 0, err
    status, _, err = ended(started(3, "-m", "jpo", *TRAIN, "--output", str(out), "--resume"))
    assert status == 0, err
    assert (out / "adapter_model.safetensors").read_bytes() == undisturbed
    tensors = load_file(out / "checkpoint-6" / "optimizer.safetensors")
    assert tensors["m"].any() and tensors["m"].shape == tensors["params"].shape


def test_a_signal_leaves_a_checkpoint_and_one_process_goes_on(tmp_path, undisturbed):
    out, status, err = broken_off(tmp_path, 1, lambda process: process.send_signal(signal.SIGTERM))
    assert status == 143 and err.count("stopped by SIGTERM; step") == 1, err
    saved = max(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
    assert saved == rows(out)
    done = jpo_alone(*TRAIN, "--output", str(out), "--resume")  # its eight slots stand with the run
    assert done.returncode == 0, done.stderr
    assert (out / "adapter_model.safetensors").read_bytes() == undisturbed


RAISES = """
import sys
from jpo.parallel.ranks import joined
import jpo
def bad(row):
    raise RuntimeError("the callback of step one failed")
trainer = jpo.PreferenceTrainer(jpo.load("tiny"), "example", jpo.PreferenceConfig(batch_size=8, steps=4))
if joined().rank == 1:
    trainer.step = bad
    trainer.step = lambda indices, step: bad(step)
trainer.train()
"""


def test_an_exception_on_one_rank_ends_all_with_its_own_words(tmp_path):
    status, _, err = ended(started(2, "-c", RAISES))
    assert status != 0
    assert "rank 1 of 2" in err and "RuntimeError: the callback of step one failed" in err


def test_ranks_that_differ_are_named(tmp_path):
    """Two ranks with other options: no step is made, and the difference is said once."""
    script = 'import os, sys\nfrom jpo.cli.main import main\nbeta = ["0.1", "0.3"][int(os.environ["PMI_RANK"])]\n'
    script += f"sys.exit(main({[*TRAIN, '--output', str(tmp_path / 'out'), '--beta']!r} + [beta]))"
    if "PMI_RANK" not in ended(started(1, "-c", "import os; print(list(os.environ))"))[1]:
        pytest.skip("this MPI does not name ranks by PMI_RANK")
    status, _, err = ended(started(2, "-c", script))
    assert status == 1 and err.count("ranks differ from rank 0") == 1, err
    assert "rank 1 on" in err and "option beta (0.3 there, 0.1 here)" in err
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (["--data", "missing.jsonl"], 1, "missing.jsonl: cannot be read"),
        (["--config", "missing.yaml"], 1, "missing.yaml"),
        (["--betta", "3"], 2, "No such option"),
    ],
)
def test_a_fault_of_all_ranks_is_said_once(given, status, said, tmp_path):
    ends, _, err = ended(started(2, "-m", "jpo", *TRAIN, "--output", str(tmp_path / "out"), *given))
    assert ends == status and err.count(said) == 1, err


def test_a_run_without_slots_is_not_shared(tmp_path):
    out = str(tmp_path / "out")
    assert jpo_alone(*TRAIN, "--output", out).returncode == 0
    status, _, err = ended(started(2, "-m", "jpo", *TRAIN, "--output", out, "--resume"))
    assert status == 1 and "it was begun without ranks" in err
