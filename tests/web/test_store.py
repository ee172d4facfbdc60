"""What was acknowledged is on disk, once; what was taken back is gone from the records and kept in the changes."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from jpo.errors import FormatError, JpoError
from jpo.web.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    yield store
    store.close()


def test_answers_survive_and_are_one(store, tmp_path):
    showing = store.show("item", "anna", True, 0)
    kept = store.answer(showing.id, "anna", "left", "clearer", ["tone"], 3.5)
    assert kept.feedback == 1, "the left side was side 1"
    assert store.answer(showing.id, "anna", "right", "", [], 1) is None, "a repeated request changes nothing"
    store.close()
    again = Store(tmp_path / "s.sqlite")
    (answer,) = again.answers("anna")
    assert (answer.verdict, answer.rationale, answer.tags, answer.seconds) == ("left", "clearer", ("tone",), 3.5)
    assert again.showings() == [showing]
    again.close()


@pytest.mark.parametrize("verdict, swapped, feedback", [
    ("left", False, 0), ("right", False, 1), ("left", True, 1), ("right", True, 0),
    ("equal", False, 2), ("equal", True, 2), ("skip", True, None),
])  # fmt: skip
def test_sides_are_turned_back(store, verdict, swapped, feedback):
    showing = store.show("item", "anna", swapped, 0)
    assert store.answer(showing.id, "anna", verdict, "", [], 0).feedback == feedback


def test_undo_takes_back_the_last_one_and_keeps_its_trace(store):
    first, second = store.show("a", "anna", False, 0), store.show("b", "anna", False, 0)
    store.answer(first.id, "anna", "left", "", [], 0)
    store.answer(second.id, "anna", "right", "why", [], 0)
    assert store.undo(second.id) and not store.undo(second.id) and not store.undo(999)
    assert [answer.showing for answer in store.answers()] == [first]
    rows = store._db.execute("SELECT showing, verdict FROM changes ORDER BY rowid").fetchall()
    assert rows == [(first.id, "left"), (second.id, "right"), (second.id, None)]


def test_what_does_not_belong_is_refused(store):
    showing = store.show("a", "anna", False, 0)
    with pytest.raises(JpoError, match="not one of 'ben'"):
        store.answer(showing.id, "ben", "left", "", [], 0)
    with pytest.raises(JpoError, match="not one of 'anna'"):
        store.answer(999, "anna", "left", "", [], 0)
    with pytest.raises(JpoError, match="verdict: expected one of left, right, equal, skip"):
        store.answer(showing.id, "anna", "A", "", [], 0)


def test_names_keep_their_passcodes(store):
    assert store.enter("anna", "1234") and store.enter("anna", "1234") and not store.enter("anna", "12345")
    text = b"".join(open(path, "rb").read() for path in (store.path, store.path + "-wal") if os.path.exists(path))
    assert b"1234" not in text and store.annotators() == ["anna"]
    assert store.secret("x") == store.secret("x") != store.secret("y")


def test_two_servers_and_damaged_files_are_named(store, tmp_path):
    store.show("a", "anna", False, 0)
    with pytest.raises(JpoError, match="another jpo annotate serves this project"):
        Store(tmp_path / "s.sqlite")
    (tmp_path / "bad.sqlite").write_bytes(b"no database at all, just some text that is long enough" * 50)
    with pytest.raises(FormatError, match="is no store of jpo annotate"):
        Store(tmp_path / "bad.sqlite")


WRITER = """
import sys
from jpo.web.store import Store
store = Store(sys.argv[1])
for number in range(100000):
    showing = store.show(f"item {number}", "anna", False, 0)
    store.answer(showing.id, "anna", "left", "", [], 1.0)
    print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    path = tmp_path / "s.sqlite"
    known = -1
    for moment in (0.05, 0.13, 0.2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        first = writer.stdout.readline()  # it has begun
        if not first:
            writer.wait()
            break
        time.sleep(moment)
        os.kill(writer.pid, signal.SIGKILL)
        said = [first, *writer.stdout.read().split("\n")]
        writer.wait()
        known = max(int(line) for line in said if line.strip())
        db = sqlite3.connect(path)
        rows = db.execute("SELECT item FROM showings JOIN verdicts ON id = showing").fetchall()
        db.close()
        assert len(rows) == len(set(rows)) and len(rows) in (known + 1, known + 2)
        os.remove(path)
        for rest in (f"{path}-wal", f"{path}-shm"):
            if os.path.exists(rest):
                os.remove(rest)
    assert known >= 0


def test_blocks_are_one_sync_and_undo_alone(store):
    commits = []
    store._db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    with store.together():
        first = store.show("a", "anna", False, 0)
        with pytest.raises(JpoError), store.together():
            store.show("b", "anna", False, 0)
            store.answer(999, "anna", "left", "", [], 0)
        store.answer(first.id, "anna", "left", "", [], 0)
    assert commits == ["COMMIT"] and store.showings() == [first] and len(store.answers()) == 1
    with pytest.raises(KeyError), store.together():
        store.undo(first.id)
        raise KeyError
    assert len(store.answers()) == 1 and not store._db.in_transaction
