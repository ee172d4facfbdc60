"""The cache of encoded records: what is read from it is what encoding gives, and a damaged one is never believed."""

import errno
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

import jpo
from jpo.data import store
from jpo.data.cache import Recipe, open_cached
from jpo.data.encoding import Encoder
from jpo.data.readers import iter_records, read_records, source_files
from jpo.data.records import preference_pairs, sft_examples
from jpo.data.report import Report
from jpo.data.store import Writer, data_digest
from jpo.data.templates import Template
from jpo.errors import DataError, JpoError


@pytest.fixture(scope="module")
def tokenizer():
    return jpo.load("tiny").tokenizer


def recipe(tokenizer, kind="pairs", template=None, truncation="keep_start", longest=64):
    return Recipe(kind, tokenizer, template, longest, longest // 2, truncation)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


PAIRS = [
    {"prompt": f"What is {i}?", "chosen": f"It is {i}." + " And more" * (i % 23), "rejected": f"No {i}"}
    for i in range(100)
] + [
    {"i_chosen": f"Say {i}", "r_chosen": "yes", "i_reject": f"Don't say {i}", "r_reject": "né 中", "weak": True}
    for i in range(20)
] + [{"prompt": "same", "chosen": "a", "rejected": "a"}, {"prompt": " ", "chosen": "a", "rejected": "b"}]  # fmt: skip


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path / "pairs.jsonl", PAIRS)


def in_memory(tokenizer, source, **options):
    made, reading = recipe(tokenizer, **options), Report()
    encoder = made.encoder(made.template_of(False))
    return encoder.pairs(preference_pairs(read_records(source), report=reading)), reading, encoder.report()


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end", "drop"])
@pytest.mark.parametrize("template", [None, "raw", "Q: {instruction} A:{response}!"])
def test_reads_what_encoding_gives(tmp_path, tokenizer, pairs, truncation, template):
    options = {"truncation": truncation, "template": template, "longest": 48}
    found = open_cached(str(tmp_path / "cache"), pairs, recipe(tokenizer, **options))
    expected, reading, encoding = in_memory(tokenizer, pairs, **options)
    assert list(found) == expected and found[-1] == expected[-1] and found[3:9] == expected[3:9]
    assert str(found.reading) == str(reading) and str(found.encoding) == str(encoding)
    assert found.digest == data_digest(expected) == data_digest(list(found))
    assert found.all_tokens == sum(pair.tokens for pair in expected)
    assert found.longest(7) == sorted((pair.tokens for pair in expected), reverse=True)[:7]
    with pytest.raises(IndexError):
        found[len(found)]


def test_chunks_leave_no_trace(tmp_path, tokenizer, pairs, monkeypatch):
    expected, *_ = in_memory(tokenizer, pairs)
    monkeypatch.setattr("jpo.data.encoding._CHUNK", 7)
    monkeypatch.setattr(store, "_WRITTEN", 100)
    monkeypatch.setattr(store, "_TOUCHED", 5)
    assert list(open_cached(str(tmp_path / "cache"), pairs, recipe(tokenizer))) == expected


def test_plain_numpy_files(tmp_path, tokenizer, pairs):
    found = open_cached(str(tmp_path / "cache"), pairs, recipe(tokenizer))
    tokens = np.load(os.path.join(found.folder, "tokens.npy"), mmap_mode="r")
    rows = np.load(os.path.join(found.folder, "records.npy"), mmap_mode="r")
    assert len(rows) == len(found) and tokens.dtype == np.int32 and len(tokens) == found.tokens
    first = rows[5]["start"]
    assert tokens[first : first + rows[5]["lengths"][0]].tolist() == found[5].chosen.prompt.tolist()


def test_examples_judged_and_conversations(tmp_path, tokenizer):
    rows = [{"instruction": f"Do {i}", "response": f"Done {i}"} for i in range(50)]
    path = write(tmp_path / "sft.jsonl", rows)
    found = open_cached(str(tmp_path / "cache"), path, recipe(tokenizer, "examples"))
    assert list(found) == Encoder(tokenizer, Template(), 64, 32).examples(sft_examples(read_records(path)))
    mixed = [PAIRS[0], {"prompt": "p", "completion": "c", "label": False}, PAIRS[1]]
    mixed += [{"prompt": "q", "completion": "d", "label": 1}, PAIRS[2]]
    found = open_cached(str(tmp_path / "cache"), write(tmp_path / "mixed.jsonl", mixed), recipe(tokenizer))
    assert [(p.chosen is None, p.rejected is None) for p in found] == [(False, False)] * 3 + [
        (True, False),
        (False, True),
    ]
    assert found.digest == data_digest(list(found)) and found.facts.first_judged.endswith("line 2")


def test_several_files_folders_patterns_and_parquet(tmp_path, tokenizer):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "b.jsonl", PAIRS[60:100])
    pq.write_table(pa.Table.from_pylist(PAIRS[:60]), folder / "a.parquet", row_group_size=30)
    (folder / "notes.txt").write_text("no records")
    (folder / ".hidden.jsonl").write_text("{}")
    names = [str(folder / "a.parquet"), str(folder / "b.jsonl")]
    assert source_files(str(folder)) == source_files(str(folder / "*")) == names
    assert source_files([str(folder / "b.jsonl"), str(folder)]) == [names[1], *names]
    expected, *_ = in_memory(tokenizer, write(tmp_path / "one.jsonl", PAIRS[:100]))
    for source in (str(folder), folder / "*[lt]", names):
        assert [dict(record) for record in iter_records(source)] == PAIRS[:100]
        assert list(open_cached(str(tmp_path / "cache"), source, recipe(tokenizer))) == expected
    assert len([name for name in os.listdir(tmp_path / "cache") if name.startswith("pairs-")]) == 1
    with pytest.raises(DataError, match="no file matches"):
        read_records(str(tmp_path / "*.parquet"))
    with pytest.raises(DataError, match="holds no records"):
        open_cached(str(tmp_path / "cache"), write(tmp_path / "empty.jsonl", []), recipe(tokenizer))


def test_iterables(tmp_path, tokenizer, pairs):
    expected, *_ = in_memory(tokenizer, pairs)
    for source in (PAIRS, iter(PAIRS), preference_pairs(PAIRS, report=Report())):
        made = recipe(tokenizer, template="spaced")
        assert list(open_cached(str(tmp_path / "cache"), source, made)) == expected
    assert len([name for name in os.listdir(tmp_path / "cache") if not name.startswith(".")]) == 1


def test_is_made_once_and_for_its_recipe_and_content(tmp_path, tokenizer, pairs, capsys, monkeypatch):
    folder = str(tmp_path / "cache")
    first = open_cached(folder, pairs, recipe(tokenizer))
    assert "encoded" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "__init__", None)  # nothing is encoded again
        again = open_cached(folder, [pairs], recipe(tokenizer))
        assert again.folder == first.folder and again.facts == first.facts and capsys.readouterr().err == ""
    folders = {first.folder}
    for change in ({"longest": 40}, {"truncation": "drop"}, {"template": "raw"}):
        folders.add(open_cached(folder, pairs, recipe(tokenizer, **change)).folder)
    before = os.stat(pairs)
    with open(pairs, "r+", encoding="utf-8") as file:  # one letter, the same size and times
        text = file.read()
        file.seek(0)
        file.write(text.replace("It is 7.", "It is 8."))
    os.utime(pairs, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.path.getsize(pairs) == before.st_size
    changed = open_cached(folder, pairs, recipe(tokenizer))
    folders.add(changed.folder)
    assert len(folders) == 5 and list(changed) != list(first)


def cut(path):
    os.truncate(path, os.path.getsize(path) - 4)


def flip(path):
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("name", ["tokens.npy", "records.npy", "cache.json"])
@pytest.mark.parametrize("damage", [cut, flip, empty, os.unlink])
def test_damage_is_seen_and_mended(tmp_path, tokenizer, pairs, capsys, name, damage):
    folder = str(tmp_path / "cache")
    first = open_cached(folder, pairs, recipe(tokenizer))
    expected = list(first)
    damage(os.path.join(first.folder, name))
    capsys.readouterr()
    assert list(open_cached(folder, pairs, recipe(tokenizer))) == expected
    said = capsys.readouterr().err
    assert f"{first.folder}: is damaged" in said and "encoded anew" in said
    open_cached(folder, pairs, recipe(tokenizer))
    assert capsys.readouterr().err == ""


def build(folder, path, began, result):
    made = recipe(jpo.load("tiny").tokenizer)
    began.wait()
    result.put(open_cached(folder, path, made).digest)


def test_two_builders_at_once(tmp_path, tokenizer, pairs):
    context = multiprocessing.get_context("spawn")
    folder, began, result = str(tmp_path / "cache"), context.Barrier(2), context.Queue()
    builders = [context.Process(target=build, args=(folder, pairs, began, result)) for _ in range(2)]
    for builder in builders:
        builder.start()
    digests = {result.get(timeout=120) for _ in builders}
    for builder in builders:
        builder.join()
    assert digests == {data_digest(in_memory(tokenizer, pairs)[0])}
    assert len([name for name in os.listdir(folder) if not name.endswith(".lock")]) == 1


def dies(folder, path):
    made = recipe(jpo.load("tiny").tokenizer)
    add = Writer.add

    def add_and_die(self, record):
        add(self, record)
        if self.count == 60:
            os.kill(os.getpid(), signal.SIGKILL)

    Writer.add = add_and_die
    open_cached(folder, path, made)


def test_a_killed_builder_leaves_nothing_that_is_believed(tmp_path, tokenizer, pairs):
    folder = str(tmp_path / "cache")
    process = multiprocessing.get_context("spawn").Process(target=dies, args=(folder, pairs))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and any(name.endswith(".tmp") for name in os.listdir(folder))
    assert list(open_cached(folder, pairs, recipe(tokenizer))) == in_memory(tokenizer, pairs)[0]
    assert not any(name.endswith(".tmp") for name in os.listdir(folder))


def test_a_full_disk_is_said(tmp_path, tokenizer, pairs, monkeypatch):
    def full(self, name, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Writer, "_write", full)
    with pytest.raises(JpoError, match="cannot be written: No space left on device; free some space, or name another"):
        open_cached(str(tmp_path / "cache"), pairs, recipe(tokenizer))
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_a_folder_that_cannot_be(tmp_path, tokenizer, pairs):
    (tmp_path / "file").write_text("")
    with pytest.raises(JpoError, match="cannot be written"):
        open_cached(str(tmp_path / "file" / "cache"), pairs, recipe(tokenizer))


def test_one_shot_records_name_their_template(tmp_path, tokenizer):
    """Where the template depends on all records, they are read twice."""
    tokenizer = jpo.load("tiny").tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(JpoError, match="template: say which"):
        open_cached(str(tmp_path / "cache"), iter(PAIRS), recipe(tokenizer))
    talk = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
    rows = [{"instruction": "a", "response": "b"}, talk]
    found = open_cached(str(tmp_path / "cache"), rows, recipe(tokenizer, "examples"))
    assert found.template.name == "chat" and len(found) == 2
