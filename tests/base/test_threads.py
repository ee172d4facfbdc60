"""The thread pool from outside: its size, its bounds, its switches, and life after fork."""

import os
import subprocess
import sys

import pytest

from jpo import _core


@pytest.fixture(autouse=True)
def restored():
    before = _core.get_num_threads()
    yield
    _core.set_num_threads(before)


def test_size_is_set_and_read():
    for count in (1, 3, 2):
        _core.set_num_threads(count)
        assert _core.get_num_threads() == count == _core.system_info()["threads"]
        assert _core.measure_gflops("float32", 64, 64, 64, runs=1) > 0


@pytest.mark.parametrize("count", [0, -1, 257, 1 << 40])
def test_size_outside_its_bounds(count):
    with pytest.raises(ValueError, match=rf"num_threads must lie in 1\.\.256, got {count}"):
        _core.set_num_threads(count)


@pytest.mark.parametrize("count", ["2", 2.0, None])
def test_size_of_another_type(count):
    with pytest.raises(TypeError):
        _core.set_num_threads(count)


@pytest.mark.parametrize(("switch", "value", "expected"), [("JPO_NUM_THREADS", "3", "3"), ("JPO_PIN", "0", None)])
def test_switches(switch, value, expected):
    code = (
        "from jpo import _core; _core.measure_gflops('float32', 256, 256, 256, runs=1); print(_core.get_num_threads())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, switch: value}, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0 and result.stdout.strip() == (expected or str(_core.get_num_threads()))


def test_a_child_of_fork_works():
    code = """
import os
from jpo import _core
_core.set_num_threads(2)
_core.measure_gflops("float32", 256, 256, 256, runs=1)
child = os.fork()
if child == 0:
    ok = _core.measure_gflops("float32", 256, 256, 256, runs=1) > 0
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert _core.measure_gflops("float32", 256, 256, 256, runs=1) > 0
print("status", status)
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "status 0", result.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="pinning is Linux's")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nothing is pinned")
def test_workers_are_set_free_where_others_compute():
    """Programs that keep every processor busy: pinned workers would wait for them while another processor is idle."""
    code = """
import os, subprocess, sys, time
from jpo import _core

def pinned():
    tasks = [open(f"/proc/self/task/{task}/status").read() for task in os.listdir("/proc/self/task")]
    return sum(len(text.split("Cpus_allowed_list:")[1].split()[0].split(",")) == 1 and "-" not in
               text.split("Cpus_allowed_list:")[1].split()[0] for text in tasks)

_core.set_num_threads(2)
_core.measure_gflops("float32", 256, 256, 256, runs=1)
first = pinned()
loop = f"while os.getppid() == {os.getpid()}: pass"  # none is left behind where this process is killed
busy = [subprocess.Popen([sys.executable, "-c", f"import os\\nos.sched_setaffinity(0, {{{cpu}}})\\n{loop}"])
        for cpu in sorted(os.sched_getaffinity(0))]
try:
    end = time.time() + 60
    while pinned() and time.time() < end:
        _core.measure_gflops("float32", 256, 256, 256, runs=500)
finally:
    for process in busy:
        process.kill()
print(first, pinned())
"""
    environment = {key: value for key, value in os.environ.items() if key != "JPO_PIN"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout.split()[-1] == "0", result.stdout + result.stderr
