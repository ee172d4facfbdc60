"""Lines that grow while a command runs: to a file that a later run continues, or to standard output."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import typer


@contextlib.contextmanager
def open_append(path: str | None, kept: list[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes one record; `kept` lines stand first (the whole lines of the run before)."""
    if path is None:
        yield lambda row: typer.echo(json.dumps(row, ensure_ascii=False))
        return
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.writelines(kept)
    os.replace(part, path)
    with open(path, "a", encoding="utf-8") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield write
