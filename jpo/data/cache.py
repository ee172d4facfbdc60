"""Records encoded once: a folder of caches, each known by what made it and checked whenever it is used.

A cache's key is the digest of the tokenizer, the template, the length bounds and the content of the data. It is written
aside and renamed, so that it is whole or not there; builders of one key wait for each other. At use its sizes and
digests are compared: a cache that is damaged is not believed but encoded anew, and that is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jpo.data.encoding import Encoder
from jpo.data.readers import check_sources, iter_records, no_records, source_files
from jpo.data.records import Example, Judged, Pair, good_texts, stream_examples, stream_pairs
from jpo.data.report import Report
from jpo.data.store import RECORDS, TOKENS, Kind, Store, Writer
from jpo.data.templates import Template
from jpo.disk import permitted, sha256_of, sync_folder, temporary, write_json
from jpo.errors import DataError, FormatError, JpoError

_FORMAT = "jpo encoded records 1"
_FACTS = "cache.json"
_NAME = 24  # characters of the key in a folder's name
_PER_LOOK, _SAY_SECONDS = 4096, 30.0  # records between looks at the clock; seconds between words about the progress
_REMEDY = "free some space, or name another folder with --cache-dir (cache_dir)"
_GIVEN = (Pair, Judged, Example)


@dataclass(frozen=True)
class Recipe:
    """What makes tokens of records. template: a Template, or what the option `template` says of it."""

    kind: Kind
    tokenizer: Any
    template: Template | str | None
    max_length: int
    max_prompt_length: int
    truncation: str

    def encoder(self, template: Template) -> Encoder:
        """The encoder under the template that was found."""
        return Encoder(self.tokenizer, template, self.max_length, self.max_prompt_length, self.truncation)

    def told(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        import tokenizers

        template = self.template.to_dict() if isinstance(self.template, Template) else self.template
        own = {name: getattr(self, name) for name in ("kind", "max_length", "max_prompt_length", "truncation")}
        return own | {
            "template": template,
            "tokenizer": _tokenizer_digest(self.tokenizer),
            "tokenizers": tokenizers.__version__,
        }

    def template_of(self, conversational: bool) -> Template:
        """The template, which may depend on whether a record holds messages."""
        if isinstance(self.template, Template):
            return self.template
        return Template.named(self.template, self.tokenizer, conversational)

    def template_for(self, source: Any) -> Template:
        """The template; where it depends on the records, a source is read until one of them holds messages."""
        if self.template is not None or self.tokenizer.chat_template is None:
            return self.template_of(False)
        if isinstance(source, Iterator):
            raise JpoError(
                "template: say which for records that can be read only once (template='spaced', 'chat', ...)"
            )
        return self.template_of(any(record.conversational for record in self.records(source, Report())))

    def records(self, source: Any, report: Report) -> Iterator[Any]:
        """The records of a source in their form, one by one; those that have it already as they are."""
        read = stream_pairs if self.kind == "pairs" else stream_examples
        if _in_form(source):
            for entry in source:
                if isinstance(entry, _GIVEN):
                    yield entry
                else:
                    yield from read(iter_records([entry]), report)
        else:
            yield from read(iter_records(source), report)


def _in_form(source: Any) -> bool:
    """Whether a source holds records in their form already."""
    return isinstance(source, (list, tuple)) and any(isinstance(entry, _GIVEN) for entry in source)


@dataclass
class Facts:
    """What is to be said of records once they are tokens."""

    template: dict[str, Any]
    shown: str = ""  # the first record, as it is learned
    given: int = 0  # records that were read and can be used, whether they fit or not
    conversational: bool = False
    ties: int = 0
    first_tie: str = ""  # where it stands
    first_judged: str = ""
    digest: str = ""  # data_digest
    lengths: dict[str, int] = field(default_factory=dict)  # tokens of a record -> how many have so many
    reading: dict[str, Any] = field(default_factory=dict)  # reports
    encoding: dict[str, Any] = field(default_factory=dict)


class CachedRecords(Store):
    """Records of a cache, by index, and its facts."""

    def __init__(self, folder: str, kind: Kind, facts: Facts):
        super().__init__(folder, kind)
        self.facts = facts
        self.digest = facts.digest
        self.template = Template.from_dict(facts.template)
        self.lengths = Counter({int(tokens): count for tokens, count in facts.lengths.items()})

    @property
    def all_tokens(self) -> int:
        """Tokens of all sequences, before any sharing."""
        return sum(tokens * count for tokens, count in self.lengths.items())

    def longest(self, count: int) -> list[int]:
        """Tokens of the `count` records that have the most."""
        found: list[int] = []
        for tokens in sorted(self.lengths, reverse=True):
            found += [tokens] * min(self.lengths[tokens], count - len(found))
            if len(found) == count:
                break
        return found

    @property
    def reading(self) -> Report:
        """What became of the records as they were read."""
        return Report.from_stored(self.facts.reading)

    @property
    def encoding(self) -> Report:
        """What became of them as they were encoded."""
        return Report.from_stored(self.facts.encoding)


def open_cached(folder: str, source: Any, recipe: Recipe) -> CachedRecords:
    """The records of `source` in tokens, out of the cache in `folder`, where they are put first if they are not there.

    source: as read_records understands it, or Pair, Judged and Example objects. What is no file is encoded at each
    call, for its content is not known before. DataError and JpoError as of reading and encoding; JpoError where
    `folder` cannot be written."""
    with _writing(folder):
        os.makedirs(folder, exist_ok=True)
    files = source_files(source)
    if files is None:
        with _building(os.path.join(folder, "records")) as part:
            facts = _encode(part, source, recipe)
            return _kept(part, folder, _key(recipe, ["records", facts.digest]), recipe, facts)
    key = _key(recipe, [_content(path) for path in files])
    with _locked(folder, key):
        found = _found(_path(folder, recipe, key), key, recipe.kind)
        if found is not None:
            return found
        begun = time.monotonic()
        with _building(_path(folder, recipe, key)) as part:
            made = _kept(part, folder, key, recipe, _encode(part, source, recipe))
        _say(
            f"{made.folder}: {len(made)} records, {made.all_tokens} tokens encoded in {time.monotonic() - begun:.0f} s"
        )
        return made


# ---- making one -----------------------------------------------------------------------------------------------------


def _encode(part: str, source: Any, recipe: Recipe) -> Facts:
    """Encodes all records into the folder `part`."""
    check_sources(source)
    template = recipe.template_for(source)
    encoder, reading = recipe.encoder(template), Report()
    facts = Facts(template.to_dict())

    def noted(records: Iterable[Any]) -> Iterator[Any]:
        for record in records:
            if not facts.given:
                facts.shown = encoder.example(*good_texts(record))
            facts.given += 1
            facts.conversational |= record.conversational
            judged = isinstance(record, Judged)
            if judged:
                facts.first_judged = facts.first_judged or record.where or "records"
            elif isinstance(record, Pair) and record.tie:
                facts.ties += 1
                facts.first_tie = facts.first_tie or record.where or "records"
            yield record

    said = time.monotonic()
    with _writing(part):
        writer = Writer(part, judged_last=not _in_form(source))
        try:
            for record in encoder.stream(noted(recipe.records(source, reading))):
                writer.add(record)
                if not writer.count % _PER_LOOK and time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    _say(f"{writer.count} records encoded so far")
            if not facts.given:
                if not reading.records:
                    raise no_records(source)
                raise DataError(f"no record is left to train on:\n{reading}")
            encoder.check_left(writer.count, facts.given, recipe.kind)
            facts.digest = writer.close()
        finally:
            writer.abandon()
    facts.lengths = {str(tokens): count for tokens, count in sorted(writer.lengths.items())}
    facts.reading, facts.encoding = reading.stored(), encoder.report().stored()
    return facts


def _kept(part: str, folder: str, key: str, recipe: Recipe, facts: Facts) -> CachedRecords:
    """The finished folder `part` under its name. Where another process was first, its cache."""
    path = _path(folder, recipe, key)
    with _writing(folder):
        files = {name: _file_facts(os.path.join(part, name)) for name in (TOKENS, RECORDS)}
        told = {
            "format": _FORMAT,
            "key": key,
            "recipe": recipe.told(),
            "files": files,
            "facts": dataclasses.asdict(facts),
        }
        write_json(os.path.join(part, _FACTS), told | {"sha256": _digest_of(told)})
        sync_folder(part)
        os.chmod(part, permitted(0o777))
        if os.path.isdir(path) and (found := _found(path, key, recipe.kind)) is not None:
            return found
        try:
            os.rename(part, path)
        except OSError:
            found = _found(path, key, recipe.kind)
            if found is None:
                raise
            return found
        sync_folder(folder)
    return CachedRecords(path, recipe.kind, facts)


@contextlib.contextmanager
def _writing(folder: str) -> Iterator[None]:
    """A fault of the file system inside the block becomes a JpoError that names the folder, with the remedy."""
    try:
        yield
    except OSError as error:
        raise JpoError(f"{folder}: the cache cannot be written: {error.strerror or error}; {_REMEDY}") from None


@contextlib.contextmanager
def _building(path: str) -> Iterator[str]:
    """A new folder beside `path`, gone at the end of the block unless it was renamed."""
    with _writing(os.path.dirname(path)), temporary(path, folder=True) as part:
        yield part


@contextlib.contextmanager
def _locked(folder: str, key: str) -> Iterator[None]:
    """One builder of a key at a time; where the file system has no locks, renaming alone keeps them apart."""
    with _writing(folder):
        file = open(os.path.join(folder, f".{key[:_NAME]}.lock"), "w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{folder}: waits for another process, which encodes the same records")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks here
        yield


# ---- finding one ----------------------------------------------------------------------------------------------------


def _found(path: str, key: str, kind: Kind) -> CachedRecords | None:
    """The cache at `path`, checked; None where there is none. A damaged one is removed, and that is said."""
    if not os.path.isdir(path):
        return None
    try:
        with open(os.path.join(path, _FACTS), encoding="utf-8") as file:
            told = json.load(file)
        digest = told.pop("sha256")
        if digest != _digest_of(told) or told["format"] != _FORMAT or told["key"] != key:
            raise FormatError(f"{_FACTS} is not what was written")
        for name, known in told["files"].items():
            if _file_facts(os.path.join(path, name)) != known:
                raise FormatError(f"{name} is not what was written")
        return CachedRecords(path, kind, Facts(**told["facts"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, JpoError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        _say(f"{path}: is damaged ({reason}); the records are encoded anew")
        with _writing(path):
            shutil.rmtree(path)
        return None


def _path(folder: str, recipe: Recipe, key: str) -> str:
    return os.path.join(folder, f"{recipe.kind}-{key[:_NAME]}")


def _key(recipe: Recipe, content: list[Any]) -> str:
    return _digest_of({"format": _FORMAT, "recipe": recipe.told(), "content": content})


def _digest_of(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _content(path: str) -> list[str]:
    """How a file of records is read, and the digest of its bytes."""
    return [os.path.splitext(path.lower().removesuffix(".gz"))[1], sha256_of(path)]


def _file_facts(path: str) -> dict[str, Any]:
    return {"bytes": os.path.getsize(path), "sha256": sha256_of(path)}


def _tokenizer_digest(tokenizer: Any) -> str:
    names = ("special", "eos_token_ids", "eos_token_id", "adds_bos", "chat_template", "bounded")
    own = json.dumps([getattr(tokenizer, name) for name in names], sort_keys=True)
    return hashlib.sha256(f"{own}\n{tokenizer.backend.to_str(pretty=False)}".encode()).hexdigest()


def _say(text: str) -> None:
    print(f"jpo: {text}", file=sys.stderr, flush=True)
