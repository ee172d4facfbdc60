"""Files and iterables of records: JSON Lines, JSON, CSV, Parquet, mappings; text also packed by gzip.

Each record remembers where it came from. Knows bytes, JSON and rows; never what the keys of a record mean
(jpo.data.records does).
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jpo.errors import DataError, MissingExtra

EXAMPLE = "example"  # the name of the embedded preference pairs
_SUFFIXES = {
    ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
_NAMES = ".jsonl, .json, .csv, .tsv (each also .gz) or .parquet"
_CELL_LIMIT = 1 << 30  # characters of a CSV cell; the csv module's own bound is 128 KiB
_PIECE = 1 << 18  # bytes that are unpacked at a time
_UNPACKED, _TIMES_PACKED = 1 << 26, 200  # what a packed file may hold in any case; beyond that, times its own size
_VERDICT_COLUMN = "feedback"  # a table of jpo annotate has it: its cells are as spreadsheet_text made them
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how a formula begins, and one that is already kept from being one
_SAVED = {"dataset_info.json", "dataset_dict.json"}  # what datasets.save_to_disk leaves beside its Arrow files
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Record(dict[str, Any]):
    """One record, an ordinary dict; `where` says where it stands ("pairs.jsonl, line 12")."""

    __slots__ = ("place", "source")

    def __init__(self, values: Mapping[str, Any], source: str, place: str):
        super().__init__(values)
        self.source = source
        self.place = place

    @property
    def where(self) -> str:
        """File and line (row of a Parquet file, index in an iterable)."""
        return f"{self.source}{self.place}"

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (dict(self), self.source, self.place)


def read_records(source: Any) -> list[Record]:
    """All records of a file, of the embedded "example", of an iterable of mappings, or the union of a list of those.

    Files are told apart by suffix: .jsonl (.ndjson), .json (an array of objects, or JSON Lines), .csv and .tsv (with a
    header; every cell is text, an empty one is left out), .parquet; all but the last also with .gz behind it, which is
    refused where it unpacks to more than 64 MB and 200 times its size. A folder is all such files in it, by name, and
    so is a pattern (data/*.jsonl, ** for folders at any depth). What is no path may name a data set of the Hugging Face
    hub: USER/NAME, with :SPLIT or :FILE.jsonl behind it. Iterables include `datasets.Dataset`, `pandas.DataFrame` and
    `pyarrow.Table`. UTF-8 with or without a byte order mark.
    DataError, naming file and line, for whatever cannot be read, duplicate keys, NaN, or a source without a record.
    """
    check_sources(source)
    records = list(iter_records(source))
    if not records:
        raise no_records(source)
    return records


def check_sources(source: Any) -> None:
    """DataError where one of several files holds no record."""
    for item in source if isinstance(source, (list, tuple)) else ():
        if isinstance(item, (str, os.PathLike)):
            check_source(item)


def check_source(source: str | os.PathLike[str]) -> None:
    """DataError where the file or data set holds no record."""
    if next(iter_records(source), None) is None:
        raise no_records(source)


def no_records(source: Any) -> DataError:
    """What a source without a record is told."""
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"
    return DataError(f"{name}: holds no records; at least one is needed")


def source_files(source: Any) -> list[str] | None:
    """The files of a source that is a path or a list of paths, folders and patterns read, in the order in which their
    records come; None where it is, or names, anything but files of this machine."""
    if isinstance(source, (list, tuple)) and source:
        parts = [source_files(entry) for entry in source]
        return None if None in parts else [path for part in parts if part is not None for path in part]
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = os.fspath(source)
    if path == EXAMPLE:
        from jpo.data.example import example_path

        return [example_path()]
    many = _many(path)
    return many if many is not None else [path] if os.path.isfile(path) else None


def _many(path: str) -> list[str] | None:
    """The record files of a folder or of a pattern (*, ?, [...]), by name; None for any other path. DataError where
    there are none."""
    if os.path.isdir(path):
        if not _SAVED.isdisjoint(os.listdir(path)):
            raise DataError(
                f"{path}: is a folder of datasets' save_to_disk, which is not read; save it with to_json('pairs.jsonl') "
                "or to_parquet('pairs.parquet'), or give the Dataset itself in Python"
            )
        names = sorted(name for name in os.listdir(path) if is_record_file(name) and not name.startswith("."))
        found = [os.path.join(path, name) for name in names if os.path.isfile(os.path.join(path, name))]
        what = "is a folder without a file"
    elif glob.has_magic(path) and not os.path.exists(path):
        matches = sorted(glob.glob(path, recursive=True))
        found = [name for name in matches if os.path.isfile(name) and is_record_file(os.path.basename(name))]
        what = "no file matches"
    else:
        return None
    if not found:
        raise DataError(f"{path}: {what} whose name ends in {_NAMES}")
    return found


def iter_records(source: Any) -> Iterator[Record]:
    """The records of `source` one by one, as `read_records` understands it; a source without records is allowed."""
    if isinstance(source, (str, os.PathLike)):
        yield from _read_file(os.fspath(source))
        return
    if isinstance(source, Mapping):
        kind = (
            "splits: choose one, such as data['train']" if _holds_tables(source) else "keys: put one record in a list"
        )
        raise DataError(f"records: expected an iterable of mappings, got one mapping of {kind}")
    source = _rows_of(source)
    if isinstance(source, (bytes, bytearray)) or not isinstance(source, Iterable):
        raise DataError(f"records: expected a path or an iterable of mappings, got {type(source).__name__}")
    for index, item in enumerate(source):
        if isinstance(item, (str, os.PathLike)):
            yield from _read_file(os.fspath(item))
        elif isinstance(item, Record):
            yield item
        elif isinstance(item, Mapping):
            yield Record(item, "records", f"[{index}]")
        else:
            raise DataError(f"records[{index}]: expected a mapping (or a path), got {type(item).__name__}")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file that holds no records: UTF-8 with or without a byte order mark. DataError, naming it, where
    it cannot be read."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            return _text(_without_mark(file.read(), name), name)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None


def is_record_file(name: str) -> bool:
    """Whether a name is that of records: "example", or one with a suffix that is read."""
    plain = name.lower().removesuffix(".gz")
    return name == EXAMPLE or os.path.splitext(plain)[1] in _SUFFIXES


def check_apart(output: str | os.PathLike[str], sources: Iterable[Any]) -> None:
    """DataError where `output` is one of the files that are read: writing it would lose what it holds."""
    for source in sources:
        if isinstance(source, (str, os.PathLike)) and os.path.exists(source) and os.path.exists(output):
            if os.path.samefile(source, output):
                raise DataError(f"{os.fspath(output)}: is read and written at once; give the output another name")


def write_records(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> int:
    """Writes JSON Lines beside `path`, syncs and renames: readers see the old file or the whole new one. The count."""
    from jpo.disk import make_folder_of, write_atomic

    path = os.fspath(path)
    if not path.lower().endswith((".jsonl", ".ndjson")):
        raise DataError(f"{path}: records are written as JSON Lines; give a name that ends in .jsonl")
    count = 0

    def write(temporary: str) -> None:
        nonlocal count
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1

    try:
        make_folder_of(path)
        write_atomic(path, write)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    return count


def _holds_tables(source: Mapping[Any, Any]) -> bool:
    return any(not isinstance(value, (str, Mapping)) and hasattr(value, "__len__") for value in source.values())


def _rows_of(source: Any) -> Iterable[Any]:
    """Tables whose iteration yields columns are turned into their rows."""
    rows: Iterable[Any] = source
    if hasattr(source, "to_pylist") and hasattr(source, "column_names"):  # pyarrow.Table
        rows = source.to_pylist()
    elif hasattr(source, "to_dict") and hasattr(source, "iloc"):  # pandas.DataFrame
        rows = source.to_dict("records")
    return rows


def _read_file(path: str) -> Iterator[Record]:
    if path == EXAMPLE:
        from jpo.data.example import example_path

        yield from _json_lines(example_path(), EXAMPLE)
        return
    many = _many(path)
    if many is not None:
        for name in many:
            yield from _read_file(name)
        return
    on_hub = _on_hub(path)
    if on_hub is not None:
        yield from on_hub
        return
    name = path.lower()
    packed = name.endswith(".gz")
    kind = _SUFFIXES.get(os.path.splitext(name.removesuffix(".gz"))[1])
    if kind is None or (packed and kind == "parquet"):
        raise DataError(
            f"{path}: expected a name that ends in {_NAMES}, {EXAMPLE!r}, or a data set of the hub (USER/NAME)"
        )
    reader = {"lines": _json_lines, "json": _json_file, "csv": _csv_file, "parquet": _parquet}[kind]
    try:
        yield from reader(path, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _on_hub(path: str) -> Iterator[Record] | None:
    """The records of a data set on the hub (USER/NAME, USER/NAME:SPLIT, USER/NAME:CONFIGURATION/SPLIT) or of one of its
    files (USER/NAME:FILE.jsonl), each also with @REVISION before the colon; None where `path` names none."""
    from jpo.hub.names import hub_name

    name = hub_name(path)
    if name is None:
        return None
    if name.part is not None and os.path.splitext(name.part.lower().removesuffix(".gz"))[1] in _SUFFIXES:
        from jpo.hub.download import data_path

        return (Record(record, path, record.place) for record in _read_file(data_path(name)))
    from jpo.hub.data import dataset_rows

    return (Record(row, path, f"[{index}]") for index, row in enumerate(dataset_rows(name)))


class _Unpacked(io.RawIOBase):
    """The bytes that a gzip file holds; DataError where they are more than any text's, before they fill the memory."""

    def __init__(self, path: str):
        self._path, self._read = path, 0
        self._most = max(_UNPACKED, _TIMES_PACKED * os.path.getsize(path))
        self._file = gzip.open(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._read += count
        if self._read > self._most:
            raise DataError(
                f"{self._path}: unpacks to more than {_TIMES_PACKED} times its size, as no text does; "
                "if that is meant, unpack it (gunzip) and name the unpacked file"
            )
        return count

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._read = 0
        return self._file.seek(place, whence)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: str) -> Any:
    """The file's bytes, unpacked where its name says that they are packed."""
    return io.BufferedReader(_Unpacked(path), _PIECE) if path.lower().endswith(".gz") else open(path, "rb")


def spreadsheet_text(text: str) -> str:
    """A cell of a table of people's records: an apostrophe stands before what a spreadsheet would take for a formula,
    and before a text that looks as if it had been given one. `read_records` takes it back from such a table."""
    return f"'{text}" if _FORMULA.match(text) else text


def _plain_text(cell: str) -> str:
    """The text that spreadsheet_text made the cell of."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def _csv_file(path: str, name: str) -> Iterator[Record]:
    """Rows under the names of the first one; what a quoted cell holds, line ends too, is its text."""
    tabs = ".tsv" in path.lower()[-7:]
    csv.field_size_limit(_CELL_LIMIT)
    with _open(path) as file:
        head = file.read(3)
        file.seek(0 if _without_mark(head, name) == head else len(codecs.BOM_UTF8))
        lines = io.TextIOWrapper(file, encoding="utf-8", newline="")
        rows = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
        line = 1
        try:
            keys = next(rows, [])
            read = _plain_text if _VERDICT_COLUMN in keys else str
            keys = [read(key) for key in keys]
            if len(set(keys)) != len(keys) or not all(key.strip() for key in keys):
                raise DataError(f"{name}, line 1: expected a header of different names, got {', '.join(keys)}")
            if len(keys) == 1 and not tabs and max(map(keys[0].count, ";\t"), default=0):
                raise DataError(f"{name}, line 1: expected cells parted by commas, got {keys[0]!r}; tabs: name it .tsv")
            line = rows.line_num + 1
            for row in rows:
                if row and len(row) != len(keys):
                    raise DataError(
                        f"{name}, line {line}: expected {len(keys)} cells as the header has, got {len(row)}"
                    )
                if row:
                    yield _record({key: read(cell) for key, cell in zip(keys, row, strict=True) if cell}, name, line)
                line = rows.line_num + 1
        except csv.Error as error:
            raise DataError(f"{name}, line {line}: not CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, behind line {line}: byte 0x{error.object[error.start]:02x} is no valid UTF-8"
            ) from None


def _json_lines(path: str, name: str) -> Iterator[Record]:
    """One object a line; lines end at \\n alone, so that U+2028 inside a text does not cut it."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = _without_mark(line, name)
            if line.lstrip()[:1] == b"[":
                raise DataError(
                    f"{name}, line {number}: expected a JSON object, got a JSON array; a file that is one array of records "
                    "has a name that ends in .json"
                )
            if line.strip():
                yield _record(_parse(_text(line, f"{name}, line {number}"), name, number), name, number)


def _json_file(path: str, name: str) -> Iterator[Record]:
    """An array of objects; a file that begins with an object is taken as JSON Lines, as many exporters write it."""
    with _open(path) as file:
        data = _without_mark(file.read(), name)
    if data.lstrip()[:1] != b"[":
        del data
        yield from _json_lines(path, name)
        return
    text = _text(data, name)
    del data
    at = text.index("[") + 1
    line, counted = 1, 0  # the line of text[counted]
    first = True
    while True:
        at = _skip_space(text, at)
        if text[at : at + 1] == "]" and first:
            at += 1
            break
        line, counted = line + text.count("\n", counted, at), at
        value, at = _decode_at(text, at, name, line)
        yield _record(value, name, line)
        first = False
        at = _skip_space(text, at)
        mark = text[at : at + 1]
        at += 1
        if mark == "]":
            break
        if mark != ",":
            line += text.count("\n", counted, at)
            raise DataError(f"{name}, line {line}: expected ',' or ']' after a record, got {mark or 'the end'!r}")
    if _skip_space(text, at) != len(text):
        raise DataError(f"{name}: text after the closing ']' of the array")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _parquet(path: str, name: str) -> Iterator[Record]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra(f"{name}: reading Parquet needs pyarrow; install it with: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    row += 1
                    yield Record(value, name, f", row {row}")
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: not a readable Parquet file: {reason}") from None


def _without_mark(data: bytes, name: str) -> bytes:
    if data.startswith(_UTF16):
        raise DataError(f"{name}: is UTF-16; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start)
        place = f"{where}, line {line + 1}" if ", line " not in where else where
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        raise DataError(f"{place}: byte {column} (0x{data[error.start]:02x}) is no valid UTF-8") from None


def _record(value: Any, name: str, line: int) -> Record:
    if not isinstance(value, dict):
        kind = {"list": "array", "str": "string", "NoneType": "null"}.get(type(value).__name__, "number or boolean")
        raise DataError(f"{name}, line {line}: expected a JSON object, got a JSON {kind}")
    return Record(value, name, f", line {line}")


def _parse(text: str, name: str, line: int) -> Any:
    stripped = text.strip(" \t\r\n")
    value, end = _decode_at(stripped, 0, name, line)
    if end != len(stripped):
        raise DataError(f"{name}, line {line}: column {end + 1}: text after the JSON object; write one record a line")
    return value


class _Refused(Exception):
    """Something that JSON texts here must not hold; without the place, which only the caller knows."""


def _refuse_constant(constant: str) -> Any:
    raise _Refused(f"{constant} is no JSON; write null or leave the key out")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _Refused(f"key {twice!r} stands twice in one object")
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _decode_at(text: str, at: int, name: str, line: int) -> tuple[Any, int]:
    """The JSON value that begins at text[at], which stands in `line`, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except _Refused as error:
        raise DataError(f"{name}, line {line}: {error}") from None
    except json.JSONDecodeError as error:
        line += text.count("\n", at, error.pos)
        column = error.pos - max(text.rfind("\n", 0, error.pos) + 1, 0) + 1
        cut = "; is the file cut off?" if error.pos >= len(text) or error.msg.startswith("Unterminated") else ""
        raise DataError(f"{name}, line {line}, column {column}: not JSON: {error.msg}{cut}") from None
    except RecursionError:
        raise DataError(f"{name}, line {line}: JSON nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{name}, line {line}: {error}") from None
