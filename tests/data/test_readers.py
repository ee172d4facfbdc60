"""Every source that read_records takes, and one test for each malformed form of a file."""

import copy
import gzip
import json
import pickle
import time

import pytest

from jpo.data import readers
from jpo.data.readers import Record, iter_records, read_records, write_records
from jpo.errors import DataError
from tests.peak_memory import grown

ROWS = [{"instruction": "a", "response": "b"}, {"instruction": "c {x}\u2028d", "response": "é 🐘"}]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def put(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("x.jsonl", lines(ROWS), [1, 2]),
        ("x.ndjson", lines(ROWS).replace(b"\n", b"\r\n"), [1, 2]),
        ("x.JSONL", lines(ROWS).rstrip(b"\n"), [1, 2]),
        ("x.jsonl", b"\xef\xbb\xbf" + lines(ROWS), [1, 2]),
        ("x.jsonl", b"\n \n" + lines(ROWS[:1]) + b"\t\n" + lines(ROWS[1:]), [3, 5]),
        ("x.json", json.dumps(ROWS).encode(), [1, 1]),
        ("x.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode(), [2, 6]),
        ("x.json", lines(ROWS), [1, 2]),
    ],
)
def test_files_give_their_records_and_lines(tmp_path, name, data, places):
    path = put(tmp_path, name, data)
    records = read_records(path)
    assert records == ROWS
    assert [record.where for record in records] == [f"{path}, line {place}" for place in places]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", lines(ROWS) + b'{"a": 1', r"line 3, column 8: not JSON.*cut off"),
        ("x.jsonl", b'{"a": "b\n', r"line 1, column 7: not JSON: .*cut off"),
        ("x.jsonl", lines(ROWS) + b"[1]\n", r"line 3: expected a JSON object, got a JSON array"),
        ("x.jsonl", b"null\n", r"line 1: expected a JSON object, got a JSON null"),
        ("x.jsonl", b'{"a": 1} {"a": 2}\n', r"line 1: column 9: text after the JSON object"),
        ("x.jsonl", lines(ROWS) + b'{"a": "\xff"}\n', r"line 3: byte 7 \(0xff\) is no valid UTF-8"),
        ("x.json", b'[{"a": 1},\n {"a": "\xff"}]', r"line 2: byte 8 \(0xff\) is no valid UTF-8"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), r"is UTF-16; save it as UTF-8"),
        ("x.jsonl", b'{"a": 1, "b": {"c": 1, "c": 2}}\n', r"line 1: key 'c' stands twice"),
        ("x.jsonl", b'{"a": NaN}\n', r"line 1: NaN is no JSON"),
        ("x.jsonl", b'{"a": -Infinity}\n', r"line 1: -Infinity is no JSON"),
        ("x.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", r"line 1: JSON nested too deeply"),
        ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", r"line 1: Exceeds the limit"),
        ("x.json", b'[{"a": 1}\n {"a": 2}]', r"line 2: expected ',' or '\]' after a record, got '\{'"),
        ("x.json", b'[{"a": 1},\n', r"line 2, column 1: not JSON"),
        ("x.json", b'[{"a": 1},\n\n 3]', r"line 3: expected a JSON object, got a JSON number"),
        ("x.json", b'[{"a": 1}] 2', r"text after the closing"),
        ("x.jsonl", b"", r"x.jsonl: holds no records"),
        ("x.json", b"[ ]", r"x.json: holds no records"),
        ("x.txt", b"", r"expected a name that ends in .jsonl, .json, .csv, .tsv"),
        ("x.parquet.gz", b"", "expected a name that ends in .jsonl, .json, .csv, .tsv"),
        ("x.jsonl.gz", b"", "x.jsonl.gz: holds no records"),
        ("x.jsonl.gz", b"{}", "x.jsonl.gz: not a whole gzip file: Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(lines(ROWS) * 90)[:-9], "not a whole gzip file"),
        ("x.jsonl.gz", gzip.compress(lines(ROWS) + b"{"), "x.jsonl.gz, line 3, column 2: not JSON"),
        ("x.csv", b"", "holds no records"),
        ("x.csv", b"a,b\n", "holds no records"),
        ("x.csv", b"a,a\n1,2\n", "line 1: expected a header of different names, got a, a"),
        ("x.csv", b"a,\n1,2\n", "line 1: expected a header of different names"),
        ("x.csv", b'a,b\n1,2\n"x\ny",3\n4\n', "line 5: expected 2 cells as the header has, got 1"),
        ("x.csv", b'a,b\n1,"2\n', "line 2: not CSV: unexpected end of data"),
        ("x.csv", b"a,b\n1,\xff\n", "byte 0xff is no valid UTF-8"),
        ("x.csv", "a,b".encode("utf-16"), "is UTF-16"),
    ],
)
def test_malformed_files_are_refused_by_place(tmp_path, name, data, message):
    path = put(tmp_path, name, data)
    with pytest.raises(DataError, match=message) as caught:
        read_records(path)
    assert str(caught.value).startswith(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_records(tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "dataset_dict.json"])
def test_a_data_set_saved_to_disk_is_no_folder_of_records(tmp_path, name):
    """datasets' save_to_disk: the JSON beside its Arrow files holds no records."""
    (tmp_path / name).write_text('{\n  "splits": ["train"]\n}')
    with pytest.raises(DataError, match=r"save_to_disk, which is not read; save it with to_json\('pairs.jsonl'\)"):
        read_records(tmp_path)


def test_iterables_of_mappings(tmp_path):
    assert read_records(iter(ROWS)) == ROWS
    assert [record.where for record in read_records(tuple(ROWS))] == ["records[0]", "records[1]"]
    with pytest.raises(DataError, match=r"records\[1\]: expected a mapping .* got int"):
        read_records([ROWS[0], 3])
    with pytest.raises(DataError, match="one mapping of keys: put one record in a list"):
        read_records(ROWS[0])
    with pytest.raises(DataError, match="one mapping of splits: choose one"):
        read_records({"train": ROWS})
    for wrong in (3, b"x.jsonl", None):
        with pytest.raises(DataError, match="expected a path or an iterable of mappings, got"):
            read_records(wrong)
    with pytest.raises(DataError, match="a list: holds no records"):
        read_records([])
    assert list(iter_records([])) == []


def test_a_union_keeps_order_and_places(tmp_path):
    first, second = put(tmp_path, "a.jsonl", lines(ROWS)), put(tmp_path, "b.json", json.dumps(ROWS[:1]).encode())
    records = read_records([first, second, {"instruction": "z"}])
    assert records == [*ROWS, ROWS[0], {"instruction": "z"}]
    assert [record.where for record in records[2:]] == [f"{second}, line 1", "records[2]"]


def test_records_keep_their_place_when_copied():
    record = Record({"a": 1}, "x.jsonl", ", line 4")
    for other in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert other == {"a": 1} and other.where == "x.jsonl, line 4"


def test_tables_of_text(tmp_path):
    rows = 'instruction,response,id\n"a, b","line 1\nline ""2""",\n\nc,  d ,7\n'
    expected = [
        {"instruction": "a, b", "response": 'line 1\nline "2"'},
        {"instruction": "c", "response": "  d ", "id": "7"},
    ]
    for name, data in {
        "x.csv": rows.encode(), "y.csv": b"\xef\xbb\xbf" + rows.replace("\n", "\r\n").replace("1\r\n", "1\n").encode(),
        "x.CSV.gz": gzip.compress(rows.encode()), "x.tsv": rows.replace("a, b", "a; b").replace(",", "\t").replace(";", ",").encode(),
    }.items():  # fmt: skip
        found = read_records(put(tmp_path, name, data))
        assert [dict(record) for record in found] == expected, name
        assert [record.place for record in found] == [", line 2", ", line 5"]


def test_packed_files(tmp_path):
    assert read_records(put(tmp_path, "x.jsonl.gz", gzip.compress(lines(ROWS)))) == ROWS
    assert read_records(put(tmp_path, "x.json.gz", gzip.compress(json.dumps(ROWS).encode()))) == ROWS


def test_a_packed_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    """Of 0.3 MB came 300, of which up to 1,600 were held. Here what any file may hold is 8 MB in place of 64."""
    monkeypatch.setattr(readers, "_UNPACKED", 1 << 23)
    bomb = gzip.compress(b'[{"instruction": "' + b"a" * (48 << 20))
    for name in ("x.jsonl.gz", "x.json.gz", "x.csv.gz"):
        path = put(tmp_path, name, bomb)
        with grown() as growth, pytest.raises(DataError, match=f"{name}: unpacks to more than 200 times its size"):
            read_records(path)
        assert growth.bytes < 64 << 20


def test_a_large_packed_file_is_read_whole(tmp_path, monkeypatch):
    """Beyond what any packed file may hold, as far as its own size allows."""
    monkeypatch.setattr(readers, "_UNPACKED", 1 << 12)
    rows = [{"instruction": "abcdefgh" * 125, "n": n} for n in range(700)]
    data = gzip.compress(lines(rows))
    assert len(lines(rows)) > 1 << 19 and len(data) * 200 > len(lines(rows))
    assert read_records(put(tmp_path, "x.jsonl.gz", data)) == rows


def test_a_key_that_stands_twice_among_many_is_named_at_once(tmp_path):
    """Each key was compared with all others: 3.5 s of 20,000, and a hundred times that of ten times as many."""
    keys = ",".join(f'"k{n}": 1' for n in range(200_000))
    path = put(tmp_path, "x.jsonl", f'{{{keys}, "k199999": 2}}\n'.encode())
    began = time.process_time()
    with pytest.raises(DataError, match="key 'k199999' stands twice"):
        read_records(path)
    assert time.process_time() - began < 30
    long = "x" * 300_000
    assert read_records(put(tmp_path, "z.csv", f"a\n{long}\n".encode()))[0]["a"] == long


def test_parquet_tables_and_data_frames(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = str(tmp_path / "x.parquet")
    table = pyarrow.Table.from_pylist([*ROWS, {"instruction": None, "response": "r"}])
    parquet.write_table(table, path)
    records = read_records(path)
    assert records[:2] == ROWS and records[2]["instruction"] is None
    assert records[1].where == f"{path}, row 2"
    assert read_records(table) == records
    broken = put(tmp_path, "y.parquet", (tmp_path / "x.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"y\.parquet: not a readable Parquet file"):
        read_records(broken)


def test_data_frames_are_read_by_row():
    class Frame:  # the two names that tell a pandas.DataFrame from a mapping
        iloc = None

        def __iter__(self):
            return iter(["instruction", "response"])

        def to_dict(self, kind):
            assert kind == "records"
            return ROWS

    assert read_records(Frame()) == ROWS


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "out.jsonl"
    assert write_records(path, ROWS) == 2
    assert path.read_bytes() == lines(ROWS)

    def failing():
        yield ROWS[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_records(path, failing())
    assert path.read_bytes() == lines(ROWS)
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]
    with pytest.raises(DataError, match="written as JSON Lines"):
        write_records(tmp_path / "out.csv", ROWS)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_records(tmp_path / "file" / "out.jsonl", ROWS)


def test_the_embedded_example():
    records = read_records("example")
    assert len(records) == 32
    assert records[3].where == "example, line 4"
    assert {tuple(record) for record in records} == {("i_chosen", "r_chosen", "i_reject", "r_reject")}
    assert sum(record["i_chosen"] != record["i_reject"] for record in records) == 16
    texts = [text for record in records for text in record.values()]
    assert len({record["i_chosen"] for record in records}) == 32 and all(text == text.strip() for text in texts)
