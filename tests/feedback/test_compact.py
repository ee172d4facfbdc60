"""Journals compacted into Parquet: the same verdicts back, nothing asked twice, nothing lost by a kill."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys

import pytest

pytest.importorskip("pyarrow")

from jpo.cli.main import main
from jpo.errors import FormatError, JpoError
from jpo.feedback.acquire import acquire
from jpo.feedback.compact import compact
from jpo.feedback.compacted import Compacted, compacted_name
from jpo.feedback.entries import Entry
from jpo.feedback.journal import Journal, content_key
from jpo.feedback.protocol import Reply


def entry(i, verdict="A", **changes):
    key = content_key("judge", "1", False, f"question {i}")
    options = {"reply": f"{verdict}: né 中 {i}", "tokens": i, "completion_tokens": i % 7} | changes
    return Entry(key, "judge", bool(i % 2), 1 + i % 3, verdict, **options)


def journal(path, entries):
    book = Journal(path)
    book.put(entries)
    book.close()
    return str(path)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setattr("jpo.feedback.compact._GROUP", 16)
    found = [
        entry(i, ("A", "B", "tie", None)[i % 4], failed=i % 4 == 3, problem="no reply" if i % 4 == 3 else None)
        for i in range(200)
    ]
    return [journal(tmp_path / f"s{n}.sqlite", found[n::3]) for n in range(3)], {one.key: one for one in found}


def test_reads_back_what_the_journals_held(tmp_path, shards):
    paths, known = shards
    assert compact(tmp_path / "all.parquet", paths) == 200
    assert not any(name.endswith((".sqlite", "-wal", "-shm", ".tmp")) for name in os.listdir(tmp_path))
    found = Compacted(tmp_path / "all.parquet")
    assert len(found) == 200 and {one.key: one for one in found.entries()} == known
    assert [one.key for one in found.entries()] == sorted(known)
    assert all(found.get(key) == one for key, one in known.items())
    assert found.get("0" * 64) is None and found.get("f" * 64) is None and found.get("x") is None


def test_a_verdict_stays_and_compacting_again_adds(tmp_path, shards):
    paths, known = shards
    compact(tmp_path / "all.parquet", paths, keep=True)
    assert all(map(os.path.exists, paths))
    asked_again = entry(3, "B")  # had failed
    failed = entry(0, None, failed=True)  # had a verdict
    fresh = entry(1000)
    later = journal(tmp_path / "later.sqlite", [asked_again, failed, fresh])
    for _ in range(2):  # as after a kill between the file and the removal of its journals
        assert compact(tmp_path / "all.parquet", [*paths, later], keep=True) == 201
        found = Compacted(tmp_path / "all.parquet")
        assert found.get(asked_again.key) == asked_again and found.get(fresh.key) == fresh
        assert found.get(failed.key) == known[failed.key]


class Counting:
    """Says A for the longer text; counts."""

    name = "counting"

    def __init__(self):
        self.asked = 0

    async def ask(self, prompt):
        self.asked += 1
        await asyncio.sleep(0)
        return Reply("A")


def test_a_run_asks_nothing_that_was_compacted(tmp_path):
    rows = [{"instruction": f"q{i}", "response_0": "yes", "response_1": "no"} for i in range(20)]
    judge, output = Counting(), tmp_path / "out.jsonl"
    acquire(rows[:10], output, judge)
    assert judge.asked == 20
    before = output.read_bytes()
    path = f"{output}.journal.sqlite"
    assert main(["compact", "--journal", path]) == 0
    assert (
        not os.path.exists(path)
        and os.path.exists(compacted_name(path))
        and compacted_name(path).endswith(".journal.parquet")
    )
    acquire(rows[:10], output, judge)
    assert judge.asked == 20 and output.read_bytes() == before
    acquire(rows, output, judge)
    assert judge.asked == 40
    assert main(["compact", "--journal", path]) == 0
    acquire(rows, output, judge)
    assert judge.asked == 40 and len(Compacted(compacted_name(path))) == 40
    part = tmp_path / "part.sqlite"  # a shard asks the whole's
    book = Journal(part, beside=path)
    assert all(book.get(one.key) == one for one in Compacted(compacted_name(path)).entries())
    book.close()


def test_a_journal_in_use_is_named(tmp_path, shards):
    paths, _ = shards
    book = Journal(paths[1])
    with pytest.raises(JpoError, match=r"s1.sqlite: is in use"):
        compact(tmp_path / "all.parquet", paths)
    assert not os.path.exists(tmp_path / "all.parquet") and all(map(os.path.exists, paths))
    book.close()
    assert compact(tmp_path / "all.parquet", paths) == 200


KILL = """
import os, signal, sys
import jpo.feedback.compact as c
place, output, *paths = sys.argv[1:]
if place == "written":
    c._write = lambda part, entries, write=c._write: (write(part, entries), os.kill(os.getpid(), signal.SIGKILL))
else:
    c.os.remove = lambda name: os.kill(os.getpid(), signal.SIGKILL)
c.compact(output, paths)
"""


@pytest.mark.parametrize("place", ["written", "renamed"])
def test_a_kill_loses_nothing(tmp_path, shards, place):
    paths, known = shards
    output = str(tmp_path / "all.parquet")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", KILL, place, output, *paths], env=environment)
    assert done.returncode == -9 and os.path.exists(output) == (place == "renamed") and all(map(os.path.exists, paths))
    assert compact(output, paths) == 200
    assert {one.key: one for one in Compacted(output).entries()} == known
    assert sorted(name for name in os.listdir(tmp_path) if not name.endswith(".lock")) == ["all.parquet"]


def test_what_cannot_be(tmp_path, shards):
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths, _ = shards
    with pytest.raises(JpoError, match=r"give a name that ends in .parquet"):
        compact(tmp_path / "all.sqlite", paths)
    with pytest.raises(JpoError, match=r"none.sqlite: no such journal"):
        compact(tmp_path / "all.parquet", [str(tmp_path / "none.sqlite")])
    assert main(["compact", "--journal", paths[0], "--journal", paths[1]]) == 1  # without --output
    pq.write_table(pa.table({"a": [1]}), tmp_path / "s0.parquet")  # somebody's data under a journal's name
    with pytest.raises(FormatError, match="holds no verdicts that jpo compact wrote"):
        compact(tmp_path / "s0.parquet", paths[:1])
    assert Journal(paths[0]).get(entry(0).key) is not None
    compact(tmp_path / "s1.parquet", paths[1:2], keep=True)
    with open(tmp_path / "s1.parquet", "r+b") as file:
        file.truncate(os.path.getsize(tmp_path / "s1.parquet") - 20)
    with pytest.raises(FormatError, match=r"s1.parquet: no readable file of verdicts"):
        Journal(paths[1])
    assert json.dumps(sqlite3.connect(paths[2]).execute("SELECT count(*) FROM verdicts").fetchone()) == "[66]"
