"""How a repository of the hub is named where a path is expected: USER/NAME, USER/NAME@REVISION, either with :PART.

A path that exists wins. PART is a GGUF file of a model, a file or a split of a data set.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from jpo.errors import JpoError

_WORD = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>[^\s@:]+))?(?::(?P<part>[^:]+))?", re.ASCII)
# a name that ends so, without a part, is a file that is missing here
_FILES = (".gguf", ".safetensors", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".yaml", ".txt")


class HubName(NamedTuple):
    """A repository, the revision (branch, tag or commit) and the part of it that are meant."""

    repo: str
    revision: str | None = None
    part: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.part}" if self.part else "")


def hub_name(text: str) -> HubName | None:
    """What `text` names on the hub; None where it is a path that exists, or cannot be the name of a repository."""
    found = _NAME.fullmatch(text)
    if found is None or os.path.exists(text):
        return None
    name = HubName(found["repo"], found["revision"], found["part"])
    if name.part is None and name.repo.lower().endswith(_FILES):
        return None
    return None if ".." in name.repo or "--" in name.repo else name


def repository(text: str) -> str:
    """`text`, checked to be USER/NAME and nothing more; whether such a folder exists here is of no account."""
    found = _NAME.fullmatch(text)
    if found is None or found["revision"] or found["part"] or ".." in text or "--" in text:
        raise JpoError(f"{text!r}: expected the name of a repository on the hub, as USER/NAME")
    return text
