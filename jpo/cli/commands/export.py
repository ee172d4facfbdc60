"""jpo export: an adapter in another program's format."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jpo.cli.options import BaseAdapter, BaseModel
from jpo.export.presets import AdapterType


def export(
    model: BaseModel,
    adapter: BaseAdapter,
    output: Annotated[str, typer.Option("--output", help="The file to write.")],
    format: Annotated[
        Literal["gguf-lora"],
        typer.Option("--format", help="gguf-lora: llama.cpp's adapter file (--lora), Ollama's ADAPTER."),
    ] = "gguf-lora",
    type: Annotated[AdapterType, typer.Option("--type", help="Type of the adapter's matrices.")] = "f32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over the file at --output.")] = False,
) -> None:
    """Write an adapter for llama.cpp and Ollama, beside the base model's GGUF file.

    llama.cpp and Ollama load the base and this file; nothing of the base is copied.

    Example: jpo export --model smollm2-135m --adapter out --format gguf-lora --output out/adapter.gguf
    """
    from jpo.export import export_adapter

    export_adapter(model, adapter, output, type=type, overwrite=overwrite)
    typer.echo(f"adapter written to {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo export`."""
    app.command("export")(export)
