"""compute="auto": the command line's default, a fixed rule of the processor's features, held by --resume."""

import json
import os
import subprocess
import sys

import jpo
from jpo import _core

ARGUMENTS = [
    "train",
    "--model",
    "tiny",
    "--data",
    "example",
    "--batch-size",
    "2",
    "--r",
    "2",
    "--save-steps",
    "1",
    "--steps",
    "2",
]


def run(output, *more, cpu=""):
    command = [sys.executable, "-m", "jpo", *ARGUMENTS, "--output", str(output), *more]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JPO_CPU": cpu})


def stored(output):
    return json.loads((output / "jpo_config.json").read_text(encoding="utf-8"))["compute"]


def test_the_api_computes_in_float32_unless_asked():
    assert jpo.load("tiny").compute == "float32"
    assert jpo.load("tiny", compute="auto").compute == _core.auto_compute()


def test_auto_is_printed_stored_and_held(tmp_path):
    """A run that was started with other features in use goes on, from checkpoint-1, in the type that it was started
    with."""
    first = run(tmp_path / "out", cpu="generic")
    assert first.returncode == 0 and "compute float32 (auto)" in first.stdout, first.stderr
    resumed = run(tmp_path / "out", "--resume")
    assert resumed.returncode == 0 and "compute float32" in resumed.stdout and "(auto)" not in resumed.stdout
    assert stored(tmp_path / "out") == "float32"
    here = run(tmp_path / "here")
    assert here.returncode == 0 and f"compute {_core.auto_compute()} (auto)" in here.stdout, here.stderr
    assert stored(tmp_path / "here") == _core.auto_compute()


def test_another_type_than_the_run_s_is_refused(tmp_path):
    assert run(tmp_path, "--compute", "float32", cpu="generic").returncode == 0
    refused = run(tmp_path, "--resume", "--compute", "bfloat16x3", cpu="generic")
    assert refused.returncode != 0 and "needs the processor's matrix tiles (amx)" in refused.stderr
