"""jpo merge: a model with its adapter merged in, as a Hugging Face directory or a GGUF file."""

from __future__ import annotations

from typing import Annotated

import typer

from jpo.cli.options import BaseAdapter, BaseModel
from jpo.export.presets import FileType, Format


def merge(
    model: BaseModel,
    adapter: BaseAdapter,
    output: Annotated[str, typer.Option("--output", help="Directory (hf) or file (gguf) of the merged model.")],
    format: Annotated[
        Format, typer.Option("--format", help="hf: safetensors, for transformers; gguf: for llama.cpp and Ollama.")
    ] = "hf",
    type: Annotated[
        FileType | None,
        typer.Option(
            "--type", help="Type of the weights (default: the base's own; hf takes f32, f16, bf16).", show_default=False
        ),
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Largest safetensors file, for hf.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over what stands at --output.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", hidden=True, help="Kept for old scripts: values are always checked.")
    ] = True,
) -> None:
    """Write a model with its adapter merged in.

    W + scaling B A of every adapted module, with configuration, tokenizer and chat template; for --format gguf in the
    types of llama.cpp: q8_0 halves f16, q4_k_m is the usual choice for small machines.

    Example: jpo merge --model tiny --adapter out --format gguf --type f16 --output tiny.gguf
    """
    from jpo import export

    export.merge(model, adapter, output, format=format, type=type, max_shard_size=max_shard_size, overwrite=overwrite)
    typer.echo(f"merged model written to {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo merge`."""
    app.command("merge")(merge)
