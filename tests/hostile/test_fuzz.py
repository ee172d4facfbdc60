"""The fuzz programme at a small size, and what it has found: each finding stands here by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_files import adapter_config, hf_config, write_adapter_files, write_directory

from jpo.errors import FormatError
from jpo.formats import load_checkpoint
from jpo.formats.peft import read_adapter
from tests.hostile.fuzz import core, targets

ROOT = Path(__file__).parents[2]
TARGETS = (
    "gguf",
    "directories",
    "config",
    "tokenizer",
    "adapters",
    "templates",
    "journals",
    "replies",
    "checkpoints",
    "records",
    "core",
)


@pytest.mark.parametrize("target", TARGETS)
def test_a_hundred_cases_of_each_target(target, tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.hostile.fuzz",
        target,
        "--cases",
        "100",
        "--seed",
        "7",
        "--keep",
        str(tmp_path),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert f"{target}: 100 cases, 0 failures" in result.stdout


def test_the_fuzzer_can_fail(tmp_path):
    """A target that raises, crashes, hangs or grows is reported as such."""
    code = """
import os, sys, time
from tests.hostile.fuzz import __main__ as fuzz, targets

class Bad(targets.Target):
    def make(self, rng):
        return {"x": b"abc"}

    def write(self, case, folder):
        pass

    def run(self, folder, case, rng):
        kind = rng.randrange(5)
        if kind == 0:
            raise KeyError("foreign")
        if kind == 1:
            os.kill(os.getpid(), 11)
        if kind == 2:
            self.held = bytearray(200 << 20)
            self.held[::4096] = b"x" * len(self.held[::4096])
        if kind == 3:
            while True:
                pass
        if kind == 4:
            time.sleep(1e6)

targets.TARGETS["bad"] = Bad
fuzz.HANG_CPU, fuzz.HANG_WALL = 2.0, 4.0
sys.argv[1:] = ["bad", "--cases", "12", "--keep", sys.argv[1]]
fuzz.main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1, result.stderr[-2000:]
    for kind in ("KeyError at", "signal 11", "memory", "hang"):
        assert kind in result.stdout, result.stdout


def test_what_the_harness_makes_for_a_call_is_small():
    """Case 41794 of seed 9001 "grew by 274 MB": an array of up to 257^3 numbers as a list, which the engine refused."""
    calls, largest = core.Calls(), 0
    for index in range(1000):
        made = calls.floats(targets.generator(3, index))
        largest = max(largest, getattr(made, "nbytes", 0))
    assert 100_000 < largest <= 8 * core.MOST


def test_a_case_of_calls_is_the_same_in_a_process_that_has_a_model(monkeypatch):
    """One random number more was drawn where a model stood already, so that --case ran other calls."""
    drawn = []
    monkeypatch.setattr(core.Calls, "plan", lambda self, rng: drawn.append(rng.random()))
    calls = core.Calls()
    for _ in range(2):
        calls.run(["plan"], targets.generator(5, 0))
    assert calls.model is not None and drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "key", ["rms_norm_eps", "rope_theta", "sliding_window", "head_dim", "vocab_size", "bos_token_id"]
)
@pytest.mark.parametrize("value", [10**400, -(10**400), 1 << 31, 1 << 63])
def test_integers_without_end_in_a_configuration(tmp_path, key, value):
    write_directory(tmp_path / "m", config=hf_config(**{key: value}))
    try:
        load_checkpoint(str(tmp_path / "m"))
    except FormatError as error:
        assert "config.json" in str(error) and (key in str(error) or "digits" in str(error))


@pytest.mark.parametrize("key", ["r", "lora_alpha", "lora_dropout"])
def test_integers_without_end_in_an_adapter(tmp_path, key):
    write_adapter_files(tmp_path / "a", config=json.loads(json.dumps(adapter_config(**{key: 10**400}))))
    with pytest.raises(FormatError, match=key):
        read_adapter(str(tmp_path / "a"))
