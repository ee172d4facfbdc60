"""The table of fault against command: every writer but training (test_crash_points.py), killed, interrupted, and on a
disk that is full, broken, read-only, short or refuses to rename; and with the time of day set back.

After a fault the exit status says so without a traceback, what stood before stands or the whole new file does, and the
same command again ends with the bytes of a run that met no fault. JPO_SWEEP sets how many points are tried; 100000:
each one."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import jpo
from tests.hostile.commands import Commands

SHIM = Path(__file__).parent / "shim" / "crash_point.c"
POINTS = int(os.environ.get("JPO_SWEEP", "2"))
OLD = b"what stood here before\n"
pytestmark = [
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="one preloaded library at a time"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the shim needs Linux's loader"),
]


@dataclass
class Row:
    """A command that writes below a folder; in `argv`, {out} is that folder and {given} the inputs'."""

    argv: str
    replaces: tuple[str, ...] = ()  # files that hold OLD before the run
    again: str = ""  # options of the second run
    results: tuple[str, ...] = field(default=())  # files whose bytes must be equal; all, where empty


COMMANDS = {
    "generate": Row("generate --model tiny --input {given}/i.jsonl --output {out}/s.jsonl --n 2 --max-new-tokens 3"),
    "pairs": Row("pairs --conditional --input {given}/samples.jsonl --output {out}/p.jsonl", replaces=("p.jsonl",)),
    "feedback": Row(
        "feedback --input {given}/candidates.jsonl --output {out}/f.jsonl --judge tests.hostile.judge:verdict "
        "--concurrency 1",
        results=("f.jsonl",),
    ),
    "merge hf": Row("merge --model tiny --adapter {given}/adapter --output {out}/m"),
    "merge gguf": Row(
        "merge --model tiny --adapter {given}/adapter --format gguf --output {out}/m.gguf --overwrite",
        replaces=("m.gguf",),
    ),
    "export": Row(
        "export --model tiny --adapter {given}/adapter --output {out}/a.gguf --overwrite", replaces=("a.gguf",)
    ),
}
FAULTS = {
    "kill": {},
    "interrupt": {"interrupt": 1},
    "disk full": {"fail": errno.ENOSPC},
    "broken disk": {"fail": errno.EIO},
    "read-only": {"fail": errno.EROFS},
    "no rename": {"fail": errno.ESTALE, "only": "rename"},  # as a server that has gone answers over NFS
    "short writes": {"short": 1},
    "clock back": {"clock": 100_000},
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the shim needs a C compiler")
    scratch = tmp_path_factory.mktemp("shim")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", SHIM, "-o", scratch / "shim.so", "-ldl"], check=True)
    served = Commands(scratch / "shim.so", scratch)
    yield served
    served.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    lm = jpo.load("tiny")
    lm.add_lora(r=2)
    lm.save_adapter(str(folder / "adapter"))

    def lines(name, records):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    lines("i.jsonl", ({"id": n, "instruction": f"Count to {n}."} for n in range(3)))
    lines("samples.jsonl", ({"instruction": f"Say {n // 2}.", "output": f"answer {n}"} for n in range(20)))
    lines(
        "candidates.jsonl",
        ({"instruction": f"Say {n}.", "response_0": "one", "response_1": f"two {n}"} for n in range(4)),
    )
    return folder


def argv(row, given, out):
    return [part.format(given=given, out=out) for part in row.argv.split()]


def prepared(row, out):
    out.mkdir()
    for name in row.replaces:
        (out / name).write_bytes(OLD)
    return out


def state(row, out):
    """{relative path: bytes} of what the row's user reads; not the hidden temporary file that a kill leaves."""
    names = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    found = {name: path.read_bytes() for name, path in names.items() if not re.match(r"\..*\.tmp(/|$)", name)}
    return {name: found.get(name) for name in row.results} if row.results else found


@pytest.fixture(scope="module")
def whole(commands, given, tmp_path_factory):
    """name -> (number of calls, renames among them, what the run leaves)."""
    found = {}
    for name, row in COMMANDS.items():
        counts = []
        for only in ({}, {"only": "rename"}):
            out = prepared(row, tmp_path_factory.mktemp("whole") / "out")
            status, calls, text = commands.run(argv(row, given, out), out, **only)
            assert status == 0, text
            counts.append(calls)
        found[name] = (*counts, state(row, out))
    return found


def points(count):
    return sorted({1, count, *range(1, count + 1, max(1, count // POINTS))})


def expected(fault, status):
    if fault == "kill":
        return status in (-9, 0)
    if fault == "interrupt":
        return status in (130, 0)
    return status == 0 if fault in ("short writes", "clock back") else status in (1, 0)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_fault_against_command(commands, given, whole, tmp_path, name, fault):
    row = COMMANDS[name]
    calls, renames, wanted = whole[name]
    count = renames if "only" in FAULTS[fault] else calls
    if not count:
        pytest.skip("this command renames nothing")
    for at in points(count):
        out = prepared(row, tmp_path / str(at))
        status, _, text = commands.run(argv(row, given, out), out, at=at, **FAULTS[fault])
        assert "Traceback" not in text and expected(fault, status), f"point {at} of {count}: {status}\n{text[-2500:]}"
        if status == 1:  # the message names the file, its folder or a sibling
            assert re.search(re.escape(str(out)), text), text
        left = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for place in row.replaces:
            assert left.get(place) in (OLD, wanted[place]), f"point {at}: neither the old nor the new {place}"
        if status and state(row, out) != wanted:
            status, _, text = commands.run(argv(row, given, out), out)
            assert status == 0, f"point {at}, again: {text[-2500:]}"
        assert state(row, out) == wanted, f"point {at}"


def test_a_kill_asks_at_most_one_question_twice(commands, given, whole, tmp_path):
    row, calls = COMMANDS["feedback"], whole["feedback"][0]
    for at in points(calls):
        out, asked = prepared(row, tmp_path / str(at)), tmp_path / f"asked-{at}"
        for faults in ({"at": at}, {}):
            commands.run(argv(row, given, out), out, variables={"JPO_TEST_ASKED": str(asked)}, **faults)
        questions = asked.read_text().split()
        assert len(set(questions)) == 8 and len(questions) <= 9, f"point {at}"
