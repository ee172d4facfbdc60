"""Every allocation of the C engine fails once, and each with all that follow: MemoryError or the right result, no
signal.

The shim counts the calls of our own library alone; what third-party libraries do when memory ends (Rust aborts, NumPy
and Python raise) is theirs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.shims import built

ROOT = Path(__file__).parents[2]
WORK = """
import numpy as np, jpo
from jpo import _core
results = []
def attempt(call):
    try:
        return call()
    except MemoryError as error:
        assert str(error) or True
        results.append("MemoryError")
lm = attempt(lambda: jpo.load("tiny"))
if lm is not None:
    attempt(lambda: lm.add_lora(r=2))
    want = attempt(lambda: lm.sequence_logps(["Name a colour."], [" Blue."]))
    again = attempt(lambda: lm.sequence_logps(["Name a colour."], [" Blue."]))
    if want is not None and again is not None:
        assert np.array_equal(want, again)
    pairs = [{"prompt": "Name a colour.", "chosen": " Blue.", "rejected": " Six."}]
    if lm.trainable is not None:
        config = jpo.PreferenceConfig(batch_size=1, steps=1, warmup_steps=0)
        attempt(lambda: jpo.PreferenceTrainer(lm, pairs, config).loss_and_gradients(pairs))
    attempt(lambda: lm.generate(["a"], max_new_tokens=3))
z, labels = np.zeros((1, 40, 300), np.float32), np.zeros((1, 40), np.int64)
attempt(lambda: jpo.sequence_logps(z, labels))
attempt(lambda: jpo.sequence_logps_grad(z, labels, np.ones(1)))
h, w = np.zeros((1, 40, 64), np.float32), np.zeros((300, 64), np.float32)
attempt(lambda: jpo.linear_logps(h, w, labels))
attempt(lambda: jpo.linear_logps_grad(h, w, labels, np.ones(1)))
attempt(lambda: jpo.preference_loss(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2), loss="aot"))
print("ended", len(results))
"""
ENDED = """
import ctypes
ctypes.CDLL(None).jpo_fail_no_more()
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return built("failing_malloc", tmp_path_factory.mktemp("shim"))


def run(shim, at=None, always=False, count=None, work=WORK):
    environment = {**os.environ, "LD_PRELOAD": str(shim), "JPO_NUM_THREADS": "2", "JPO_PIN": "0"}
    if at is not None:
        environment["JPO_FAIL_AT"] = str(at)
    if always:
        environment["JPO_FAIL_ALWAYS"] = "1"
    if count is not None:
        environment["JPO_FAIL_COUNT"] = str(count)
    return subprocess.run(
        [sys.executable, "-c", work + ENDED], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer has an allocator of its own")
def test_every_allocation_fails_once_and_for_good(shim, tmp_path):
    whole = run(shim, count=tmp_path / "count")
    assert whole.returncode == 0 and whole.stdout.strip() == "ended 0", whole.stderr
    calls = int((tmp_path / "count").read_text())
    assert 10 < calls < 2000
    step = max(1, calls // int(os.environ.get("JPO_SWEEP", "12")))  # JPO_SWEEP=100000: each one
    raised = 0
    for at in range(1, calls + 1, step):
        for always in (False, True):
            result = run(shim, at, always)
            assert result.returncode == 0, (
                f"allocation {at} of {calls}, always {always}: {result.returncode}\n{result.stderr[-1500:]}"
            )
            raised += result.stdout.strip() != "ended 0"
    assert raised


RANKS = """
import numpy as np, jpo
try:
    found = jpo.preference_loss(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2), loss="aot")
    print("finite", bool(np.isfinite(found.losses).all()))
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer has an allocator of its own")
def test_ranks_without_memory_are_an_error(shim, tmp_path):
    """The loss's own list of ranks gave NaN in place of MemoryError."""
    assert run(shim, count=tmp_path / "count", work=RANKS).stdout.strip() == "finite True"
    calls = int((tmp_path / "count").read_text())
    told = {run(shim, at, work=RANKS).stdout.strip() for at in range(max(1, calls - 1), calls + 1)}
    assert "MemoryError" in told and told <= {"MemoryError", "finite True"}


def test_each_allocation_under_each_call_of_the_core(shim):
    """Without memory for a key's text, a configuration was said to lack the key, a model a tensor."""
    sanitized = "asan" in os.environ.get("LD_PRELOAD", "")  # its allocator is none that the shim can stand before
    preload = {} if sanitized else {"LD_PRELOAD": str(shim)}
    environment = {**os.environ, **preload, "JPO_NUM_THREADS": "1", "JPO_PIN": "0"}
    command = [sys.executable, "-m", "tests.hostile.sweep"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    told = dict(line.split(": ") for line in result.stdout.splitlines())
    assert len(told) > 30
    if importlib.util.find_spec("_testcapi"):
        assert int(told["model"].split(" of Python's")[0]) > 10, told
    if not sanitized:
        assert int(told["forward"].split(" of the engine's")[0].split()[-1]) > 2, told
