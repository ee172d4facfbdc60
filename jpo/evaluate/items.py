"""Identities of the things that are answered and judged: nothing is ever aligned by its place in a file.

A record's identity is its key `id`, else `instruction_id`, else a hash of its instruction (and of how many equal ones
stood before it). Knows records; never models or verdicts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jpo.data.readers import Record
from jpo.data.records import instruction_of
from jpo.data.texts import Text, text_key
from jpo.errors import DataError

Identity = str | int


@dataclass(frozen=True)
class Item:
    """An instruction with its identity; `record` holds everything that stood beside it."""

    id: Identity
    instruction: Text
    record: Mapping[str, Any]
    where: str

    @property
    def key(self) -> str:
        """The identity as text: 7 and "7" name the same thing, whichever way a file's writer spells numbers."""
        return str(self.id)

    @property
    def number(self) -> int:
        """The identity as a number below 2^43, for the seeds: small integers stand for themselves."""
        if isinstance(self.id, int) and 0 <= self.id < 1 << 42:
            return self.id
        return (1 << 42) + int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "little") % (1 << 42)


def items_of(records: Iterable[Mapping[str, Any]], source: str = "records") -> list[Item]:
    """Records with an instruction as items. DataError for a record without one, and for identities that repeat."""
    found: dict[str, Item] = {}
    occurrences: dict[str, int] = {}
    for index, record in enumerate(records):
        where = record.where if isinstance(record, Record) else f"{source}[{index}]"
        instruction = instruction_of(record, where)
        identity = record.get("id", record.get("instruction_id"))
        if identity is None:
            text = text_key(instruction)
            count = occurrences[text] = occurrences.get(text, 0) + 1
            identity = content_id(text) + (f"-{count}" if count > 1 else "")
        if isinstance(identity, bool) or not isinstance(identity, (str, int)):
            raise DataError(f"{where}: id: expected a text or a whole number, got {identity!r:.60}")
        item = Item(identity, instruction, record, where)
        if item.key in found:
            raise DataError(
                f"{where}: the id {identity!r} stands before at {found[item.key].where}; every record needs its own, or none"
            )
        found[item.key] = item
    return list(found.values())


def content_id(text: str) -> str:
    """Sixteen hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits for a value that JSON can hold; equal values give equal digits."""
    return content_id(json.dumps(value, sort_keys=True, ensure_ascii=False))
