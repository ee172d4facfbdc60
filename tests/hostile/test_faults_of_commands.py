"""The table of fault against command: every writer, killed, interrupted, and on a disk that is full, broken, read-only,
short or refuses to rename; with the time of day set back; and beside a second process on the same output.

After a fault the exit status says so without a traceback, what stood before stands or the whole new file does, and the
same command again ends with the bytes of a run that met no fault and leaves no temporary file behind. JPO_SWEEP sets
how many points are tried; 100000: each one. Every point of training: test_crash_points.py."""

import errno
import functools
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import pytest

import jpo
from tests.hostile.commands import Commands
from tests.hostile.shims import built

POINTS = int(os.environ.get("JPO_SWEEP", "2"))
TEMPORARY = re.compile(r"(^|/)\..+\.[a-z0-9_]{8}\.tmp(/|$)")
OLD = b"what stood here before\n"
pytestmark = [
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="one preloaded library at a time"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the shim needs Linux's loader"),
]


@dataclass
class Row:
    """A command that writes below a folder; in `argv`, {out} is that folder and {given} the inputs'."""

    argv: str
    _: KW_ONLY
    replaces: tuple[str, ...] = ()  # files that hold OLD before the run
    again: str = ""  # options of the second run
    results: tuple[str, ...] = field(default=())  # files whose bytes must be equal; all, where empty
    read: Callable[[bytes], object] = bytes  # what of them must be
    ended: int = 0  # the exit status of a run without a fault
    points: int = POINTS
    person: bool = False  # answers at its page


def numbers(data):
    """results.json without what time and place decide."""
    found = json.loads(data)
    for key in ("seconds", "stage_seconds"):
        found.pop(key)
    found["settings"].pop("output")
    return {**found, "training": {name: {**run, "seconds": 0} for name, run in found["training"].items()}}


def verdicts(data):
    return sorted((row["instruction"], row["feedback"]) for row in map(json.loads, data.splitlines()))


STUDY = {
    "model": "tiny", "judge": "tests.feedback.server:longest", "joint_size": 4, "max_new_tokens": 4, "temperatures": [1.0],
    "methods": ["sft", "dpo"], "training_seeds": [0], "train": {"steps": 2, "batch_size": 4, "warmup_steps": 0},
    "test_data": "{given}/test.jsonl", "conditional_pairs": "{given}/pairs.jsonl",
}  # fmt: skip


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
    "generate anew": Row(
        "generate --model tiny --input {given}/i.jsonl --output {out}/s.jsonl --max-new-tokens 3 --overwrite",
        replaces=("s.jsonl",),
    ),
    "train": Row(
        "train --model tiny --data example --output {out}/r --steps 2 --save-steps 1 --batch-size 2 --warmup-steps 0",
        again="--resume",
        results=("r/adapter_model.safetensors",),
    ),
    "study": Row("study {given}/study.yaml --output {out}/s", results=("s/results.json",), read=numbers, points=1),
    "annotate": Row(
        "annotate --input {given}/candidates.jsonl --output {out}/o.jsonl",
        results=("o.jsonl",),
        read=verdicts,
        ended=130,
        person=True,
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
    scratch = tmp_path_factory.mktemp("shim")
    served = Commands(built("crash_point", scratch), scratch)
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
    lines("test.jsonl", ({"instruction": f"Say word {n}", "gold_response": "word " * (n % 4 + 1)} for n in range(4)))
    lines("pairs.jsonl", ({"prompt": f"Say {n}", "chosen": f"long {n} yes", "rejected": "no"} for n in range(12)))
    (folder / "study.yaml").write_text(json.dumps(STUDY).replace("{given}", str(folder)))
    return folder


def ran(commands, row, given, out, again=False, run=None, **faults):
    """The command once, as Commands.run; `again`: as a person repeats it."""
    argv = [part.format(given=given, out=out) for part in f"{row.argv} {row.again if again else ''}".split()]
    if row.person:
        faults["annotator"] = f"{out}.acknowledged"
    return (run or commands.run)(argv, out, **faults)


def prepared(row, out):
    out.mkdir()
    for name in row.replaces:
        (out / name).write_bytes(OLD)
    return out


def state(row, out):
    """{relative path: bytes} of what the row's user reads; not the hidden temporary file that a kill leaves."""
    names = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    found = {name: path.read_bytes() for name, path in names.items() if not TEMPORARY.search(name)}
    return {name: name in found and row.read(found[name]) for name in row.results} if row.results else found


@pytest.fixture(scope="module")
def whole(commands, given, tmp_path_factory):
    """name -> (number of calls, renames among them, what the run leaves)."""

    @functools.cache
    def found(name):
        row, counts = COMMANDS[name], []
        for only in ({}, {"only": "rename"}):
            out = prepared(row, tmp_path_factory.mktemp("whole") / "out")
            status, calls, text = ran(commands, row, given, out, **only)
            assert status == row.ended, text
            counts.append(calls)
        return (*counts, state(row, out))

    return found


def points(count, wanted=POINTS):
    if wanted == 1:
        return [count // 2 + 1]
    return sorted({1, count, *range(1, count + 1, max(1, count // wanted))})


def expected(row, fault, status):
    if fault == "kill":
        return status in (-9, row.ended)
    if fault == "interrupt":
        return status in (130, row.ended)
    return status == row.ended if fault in ("short writes", "clock back") else status in (1, row.ended)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_fault_against_command(commands, given, whole, tmp_path, name, fault):
    row = COMMANDS[name]
    calls, renames, wanted = whole(name)
    count = renames if "only" in FAULTS[fault] else calls
    if not count:
        pytest.skip("this command renames nothing")
    for at in points(count, max(row.points, POINTS if POINTS > 2 else 0)):
        out = prepared(row, tmp_path / str(at))
        status, _, text = ran(commands, row, given, out, at=at, **FAULTS[fault])
        told = f"point {at} of {count}: {status}\n{text[-2500:]}"
        assert "Traceback" not in text and expected(row, fault, status), told
        if status == 1:  # the message names the file, its folder or a sibling
            assert re.search(re.escape(str(out)), text), text
        left = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for place in row.replaces:
            assert left.get(place) in (OLD, wanted[place]), f"point {at}: neither the old nor the new {place}"
        if status != row.ended or state(row, out) != wanted:
            if status and state(row, out) == wanted:
                continue  # a run that was stopped when all was done
            status, _, text = ran(commands, row, given, out, again=True)
            assert status == row.ended, f"point {at}, again: {text[-2500:]}"
        assert state(row, out) == wanted, f"point {at}"
        assert not [path for path in out.rglob("*.tmp") if TEMPORARY.search(path.name)], f"point {at}: left behind"
        if row.person:
            noted = Path(f"{out}.acknowledged").read_text().split("\n")[:-1]
            assert len(noted) == len(set(noted)), f"point {at}: an acknowledged verdict was asked for again"


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_on_one_output(commands, given, whole, tmp_path, name):
    """One ends well; the other does too, or says that the output is not its own. What stands then is whole."""
    row, wanted = COMMANDS[name], whole(name)[2]
    out = prepared(row, tmp_path / "out")
    found, told = ran(commands, row, given, out, run=functools.partial(commands.at_once, 2))
    statuses = [status for status, _ in found]
    assert row.ended in statuses and set(statuses) <= {row.ended, 1}, told
    for status, text in zip(statuses, told, strict=True):
        assert "Traceback" not in text and (status == row.ended or str(out) in text), text
    assert state(row, out) == wanted
    assert not [path for path in out.rglob("*.tmp") if TEMPORARY.search(path.name)]


def test_a_kill_asks_at_most_one_question_twice(commands, given, whole, tmp_path):
    row, calls = COMMANDS["feedback"], whole("feedback")[0]
    for at in points(calls):
        out, asked = prepared(row, tmp_path / str(at)), tmp_path / f"asked-{at}"
        for faults in ({"at": at}, {}):
            ran(commands, row, given, out, variables={"JPO_TEST_ASKED": str(asked)}, **faults)
        questions = asked.read_text().split()
        assert len(set(questions)) == 8 and len(questions) <= 9, f"point {at}"
