"""Training killed before each call that changes its directory, then resumed: the adapter is that of the whole run, to
the byte. The same points with Ctrl-C in place of the kill; and a disk that is full, broken or read-only from a point
on: an error that names the file, and the checkpoints that stood before still resume.

JPO_SWEEP sets how many points are tried; 100000 is each one."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.shims import built

ROOT = Path(__file__).parents[2]
POINTS = int(os.environ.get("JPO_SWEEP", "4"))
pytestmark = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="one preloaded library at a time")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return built("crash_point", tmp_path_factory.mktemp("shim"))


def train(output, shim=None, resume=False, **settings):
    command = [sys.executable, "-m", "jpo", "train", "--model", "tiny", "--data", "example", "--output", str(output)]
    command += [
        "--steps",
        "3",
        "--save-steps",
        "1",
        "--save-total-limit",
        "1",
        "--batch-size",
        "2",
        "--warmup-steps",
        "0",
    ]
    environment = {**os.environ, "JPO_NUM_THREADS": "1", "JPO_PIN": "0"}
    if shim is not None:
        environment |= {"LD_PRELOAD": str(shim), "JPO_CRASH_DIR": str(output)}
        environment |= {f"JPO_CRASH_{key.upper()}": str(value) for key, value in settings.items()}
    return subprocess.run(
        command + ["--resume"] * resume, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def whole(shim, tmp_path_factory):
    """(number of points, the finished adapter's bytes)."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(folder / "out", shim, count=folder / "count")
    assert result.returncode == 0, result.stderr
    return int((folder / "count").read_text()), (folder / "out" / "adapter_model.safetensors").read_bytes()


def points(count):
    return range(1, count + 1, max(1, count // POINTS))


def resumed(output, adapter):
    result = train(output, resume=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (output / "adapter_model.safetensors").read_bytes() == adapter
    left = [entry.name for entry in output.iterdir() if entry.name.startswith(".") or entry.name.endswith(".tmp")]
    assert not left


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_every_crash_point_resumes_to_the_byte(shim, whole, tmp_path, how):
    count, adapter = whole
    assert count > 40
    for at in points(count):
        output = tmp_path / f"{how}{at}"
        settings = {"interrupt": 1} if how == "interrupt" else {}
        result = train(output, shim, at=at, **settings)
        assert result.returncode in (-9, 130, -2, 0), f"point {at}: {result.returncode} {result.stderr[-1500:]}"
        assert "Traceback" not in result.stderr, f"point {at}: {result.stderr[-1500:]}"
        if result.returncode:
            resumed(output, adapter)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_fails_from_a_point_on(shim, whole, tmp_path, fault):
    count, adapter = whole
    for at in points(count):
        output = tmp_path / f"{fault}-{at}"
        result = train(output, shim, at=at, fail=fault)
        if result.returncode == 0:
            continue  # only a cleaning up failed
        assert "Traceback" not in result.stderr, f"point {at}: {result.stderr[-2500:]}"
        assert re.search(re.escape(str(tmp_path)) + "|os error|No space|Input/output|Read-only", result.stderr), (
            result.stderr
        )
        resumed(output, adapter)
