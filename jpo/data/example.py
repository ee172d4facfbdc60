"""The embedded preference pairs, which `--data example` names: 32, of our own writing, half of them joint."""

from __future__ import annotations

import os


def example_path() -> str:
    """The file inside the installed package."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "example.jsonl")
