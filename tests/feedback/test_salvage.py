"""Damaged journals: what is wrong is said, what is sound is kept, what is known is never asked again."""

import hashlib
import json
import random
import shutil
import sqlite3

import pytest

from jpo.cli.main import main
from jpo.errors import FormatError, JpoError
from jpo.feedback.acquire import acquire
from jpo.feedback.entries import Entry
from jpo.feedback.journal import Journal
from jpo.feedback.judges import CallableJudge
from jpo.feedback.salvage import salvage
from tests.feedback.server import longest

PAGE = 4096
ROWS = [{"instruction": f"q {n}", "response_0": "x" * (n % 7 + 1), "response_1": "yyyy "} for n in range(100)]


def entries(count):
    keys = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(count)]
    texts = ["A" * (n % 150) + "\u20ac" * (400 if n % 50 == 0 else 0) for n in range(count)]  # some on overflow pages
    return [Entry(key, "j", bool(n % 2), 1, "AB"[n % 2], texts[n], None, 7, 2) for n, key in enumerate(keys)]


def written(path, rows):
    book = Journal(path)
    for first in range(0, len(rows), 50):
        book.put(rows[first : first + 50])
    return book


def damaged(path, pages, seed=0):
    data, dice = bytearray(path.read_bytes()), random.Random(seed)
    for page in pages:
        data[page * PAGE : (page + 1) * PAGE] = dice.randbytes(PAGE)
    path.write_bytes(data)


def known(path, rows):
    book = Journal(path)
    found = sum(book.get(row.key) == row for row in rows)
    book.close()
    return found


@pytest.mark.parametrize("pages", [[0], [1], [0, 1], [5, 9, 17], [2, 3, 4, 5]])
def test_only_the_rows_of_damaged_pages_are_lost(pages, tmp_path):
    path, rows = tmp_path / "j.sqlite", entries(500)
    written(path, rows).close()
    whole = path.read_bytes()
    most = max(rows_of(whole, page) for page in range(1, len(whole) // PAGE))
    damaged(path, pages)
    with pytest.raises(FormatError, match="j.sqlite: not a usable verdict journal .*--salvage"):
        Journal(path)
    said = salvage(path)
    assert "salvaged" in said and (tmp_path / "j.sqlite.damaged").exists()
    assert known(path, rows) >= 500 - most * sum(page > 0 for page in pages)
    assert salvage(path) == f"{path}: nothing is damaged"


def rows_of(data, page):
    """Cells of a B-tree page, as its head says."""
    start = page * PAGE
    return int.from_bytes(data[start + 3 : start + 5], "big") if data[start] in (2, 10) else 0


def test_what_stands_in_the_write_ahead_log_alone_is_kept(tmp_path):
    """As kill -9 leaves it: nothing is in the main file yet."""
    path, rows = tmp_path / "open.sqlite", entries(200)
    book = written(path, rows)
    copy = tmp_path / "copy.sqlite"
    for end in ("", "-wal"):
        shutil.copyfile(f"{path}{end}", f"{copy}{end}")
    book.close()
    log = tmp_path / "copy.sqlite-wal"
    data = bytearray(log.read_bytes())
    data[24:32] = b"damaged!"  # its checksum: SQLite takes the log for empty
    log.write_bytes(data)
    damaged(copy, [0])
    assert "salvaged 196 questions" in salvage(copy)  # those on overflow pages of a log are not followed
    assert known(copy, rows) == 196 and not log.exists()


def test_a_kill_between_the_steps_of_a_salvage_loses_nothing(tmp_path):
    path, rows = tmp_path / "j.sqlite", entries(300)
    written(path, rows).close()
    damaged(path, [3])
    salvage(path)
    kept = known(path, rows)
    path.unlink()  # the new file did not get its place
    salvage(path)
    assert known(path, rows) == kept > 250


@pytest.mark.parametrize(
    ("column", "value", "message", "asked"),
    [
        ("verdict", "C", "verdict: expected A, B, tie or null, got 'C'", 0),  # the raw reply still says it
        ("verdict", 7, "verdict: expected A, B, tie or null, got", 0),
        ("attempts", "many", "attempts: expected a whole number, got 'many'", 0),
        ("attempts", 1.5, "attempts: expected a whole number, got 1.5", 0),
        ("attempts", -3, "attempts: expected a whole number, got -3", 0),
        ("tokens", b"\x00\xff", "tokens: expected a whole number", 0),
        ("judge", b"\xff", "judge: expected a text", 0),
        ("reply", b"\xff", "reply: expected a text or null", 0),
    ],
)
def test_a_row_that_cannot_be_is_named_and_mended(column, value, message, asked, tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    flags = ["feedback", "--input", str(source), "--output", str(out), "--judge", "tests.feedback.server:longest"]
    assert main(flags) == 0
    before = out.read_bytes()
    with sqlite3.connect(f"{out}.journal.sqlite") as db:
        key = db.execute("SELECT key FROM verdicts ORDER BY key LIMIT 1").fetchone()[0]
        db.execute(f"UPDATE verdicts SET {column} = ? WHERE key = ?", (value, key))
    db.close()
    assert main(flags) == 1
    shown = capsys.readouterr().err
    assert message in shown and key[:16] in shown and "--salvage" in shown
    assert main([*flags, "--salvage"]) == 0
    shown = capsys.readouterr()
    assert f"{asked} questions asked now" in shown.out and "salvaged 6 questions" in shown.err
    assert out.read_bytes() == before


def test_a_damaged_journal_costs_only_what_is_gone(tmp_path):
    out = tmp_path / "o.jsonl"
    acquire(ROWS, out, CallableJudge(longest, "callable:x"))
    before = out.read_bytes()
    damaged(tmp_path / "o.jsonl.journal.sqlite", [4])
    with pytest.raises(JpoError, match="--salvage"):
        acquire(ROWS, out, CallableJudge(longest, "callable:x"))
    asked = acquire(ROWS, out, CallableJudge(longest, "callable:x"), salvage=True).asked
    assert 0 < asked < 40 and out.read_bytes() == before


def test_nothing_to_salvage(tmp_path):
    assert "nothing to salvage" in salvage(tmp_path / "none.sqlite") and not list(tmp_path.iterdir())
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    assert "salvaged 0 questions" in salvage(path)
    assert Journal(path).get("k") is None


def test_damaged_bytes_never_end_it(tmp_path):
    rows = entries(120)
    written(tmp_path / "whole.sqlite", rows).close()
    whole, dice = (tmp_path / "whole.sqlite").read_bytes(), random.Random(3)
    path = tmp_path / "j.sqlite"
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 20, 400))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data[: len(data) - dice.choice((0, 0, 100, 3 * PAGE))])
        for leftover in tmp_path.glob("j.sqlite.damaged*"):
            leftover.unlink()
        salvage(path)
        Journal(path).close()
