"""jpo merge: a model with its adapter merged in, as a Hugging Face directory."""

from __future__ import annotations

from typing import Annotated

import typer

from jpo.cli.options import Check


def merge(
    model: Annotated[str, typer.Option("--model", help="The base model.")],
    adapter: Annotated[str, typer.Option("--adapter", help="The adapter's directory.")],
    output: Annotated[str, typer.Option("--output", help="Directory for the merged model (float32 safetensors).")],
    check: Check = True,
) -> None:
    """Write a model with its adapter merged in.

    W + scaling B A of every adapted module, with configuration and tokenizer."""
    import jpo

    lm = jpo.load(model, check=check)
    lm.load_adapter(adapter)
    lm.merge(output)
    typer.echo(f"merged model written to {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo merge`."""
    app.command("merge")(merge)
