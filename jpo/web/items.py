"""What is annotated: candidates read from a file, each known by its content, with the answers of gold items.

Knows records; never annotators or pages.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jpo.data.readers import iter_records
from jpo.data.records import Candidate, candidates
from jpo.data.report import Report
from jpo.data.texts import Text, text_key
from jpo.errors import DataError
from jpo.web import exchange

GOLD = "gold"  # the key of a record whose answer is known: 0, 1 or 2 (equal)
SIDES = (0, 1)


@dataclass(frozen=True)
class Item:
    """One comparison. key: a hash of the two (instruction, response) pairs, whichever stands first; gold: 0, 1, 2 or
    None."""

    key: str
    record: Mapping[str, Any]
    candidate: Candidate
    gold: int | None = None

    @property
    def joint(self) -> bool:
        """Whether two instructions are compared as well."""
        return text_key(self.candidate.instruction_0) != text_key(self.candidate.instruction_1)

    def instruction(self, side: int) -> str:
        """The instruction of side 0 or 1 as a person reads it."""
        return _readable((self.candidate.instruction_0, self.candidate.instruction_1)[side])

    def response(self, side: int) -> str:
        """The response of side 0 or 1 as a person reads it."""
        return _readable((self.candidate.response_0, self.candidate.response_1)[side])


@dataclass
class Items:
    """The comparisons of a project in the order of their file; equal ones stand once."""

    by_key: dict[str, Item] = field(default_factory=dict)
    repeated: int = 0  # records that hold a comparison which stands before
    report: Report = field(default_factory=Report)

    def __len__(self) -> int:
        return len(self.by_key)

    def __iter__(self) -> Any:
        return iter(self.by_key.values())


def _readable(text: Text) -> str:
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def _key(candidate: Candidate) -> str:
    sides = sorted(
        (text_key(instruction), text_key(response))
        for instruction, response in (
            (candidate.instruction_0, candidate.response_0),
            (candidate.instruction_1, candidate.response_1),
        )
    )
    digest = hashlib.sha256()
    for part in (part for side in sides for part in side):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _gold(record: Mapping[str, Any], where: str) -> int | None:
    value = record.get(GOLD)
    if value is None or (value in (0, 1, 2) and not isinstance(value, bool)):
        return value
    raise DataError(f"{where}: gold: expected 0, 1 or 2 (equal), the known answer; got {value!r}")


def read_items(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> Items:
    """The candidates of a file (or records), conditional and joint ones mixed as they come, those of Label Studio and
    Argilla too; DataError where none is left."""
    items = Items()
    for found in iter_records(source):
        record = exchange.candidate(found)
        for candidate in candidates([record], report=items.report):
            key = _key(candidate)
            if key in items.by_key:
                items.repeated += 1
                continue
            items.by_key[key] = Item(key, dict(record), candidate, _gold(record, candidate.where))
    if not items.by_key:
        raise DataError(f"{source}: no candidate to annotate; expected {{instruction, response_0, response_1}} records")
    return items
