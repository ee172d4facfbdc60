"""The flags that say which candidates to ask next: those of jpo pairs and jpo annotate alike."""

from __future__ import annotations

from typing import Annotated

import typer

from jpo.errors import JpoError

PANEL = "Which to ask next"
ChoosingModel = Annotated[
    str | None,
    typer.Option("--model", help="Model whose hidden states and margins choose.", rich_help_panel=PANEL),
]
ChoosingTemplate = Annotated[
    str | None,
    typer.Option("--template", help="As of jpo train. (default: the adapter's)", rich_help_panel=PANEL),
]


def no_model(what: str) -> JpoError:
    """The fault of flags that cannot choose without a model."""
    return JpoError(f"{what}: a model is needed; give --model M (a directory, a GGUF file, smollm2-135m)")
