"""Tables of two columns for the terminal: what jpo inspect and --dry-run print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_WIDTH = 100  # where the output is no terminal


def show(title: str, rows: Mapping[str, Any]) -> None:
    """One line a key; a mapping as value gives lines of its own, indented. Long values wrap in their column."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    table = Table(title=title, title_justify="left", show_header=False, title_style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        if isinstance(value, Mapping):
            table.add_row(Text(key), "")
            for inner, entry in value.items():
                table.add_row(Text(f"  {inner}"), Text(text_of(entry)))
        else:
            table.add_row(Text(key), Text(text_of(value)))
    console.print(table)


def text_of(value: Any) -> str:
    """A value as people read it: thousands grouped, lists joined, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float, list, tuple)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else ", ".join(map(text_of, value))
