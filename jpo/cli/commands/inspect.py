"""jpo inspect: what a model, an adapter or a data file holds."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated

import typer


def _adapter(path: str) -> None:
    from jpo.formats.peft import read_adapter

    config, tensors = read_adapter(path)
    typer.echo(
        f"adapter {path}: r {config.r}, lora_alpha {config.lora_alpha:g}, targets {', '.join(config.target_modules)}"
    )
    typer.echo(
        f"base model: {config.base_model_name_or_path}; {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} values"
    )
    for key, value in config.extra.items():
        typer.echo(f"{key}: {value}")


def _model(path: str) -> None:
    from jpo.formats import load_checkpoint

    checkpoint = load_checkpoint(path)
    kinds = Counter(tensor.dtype for tensor in checkpoint.tensors.values())
    size = sum(tensor.data.nbytes for tensor in checkpoint.tensors.values())
    typer.echo(f"model {checkpoint.source}: {len(checkpoint.tensors)} tensors, {size / 2**20:.1f} MiB, {dict(kinds)}")
    for key, value in checkpoint.config.items():
        if key not in ("inv_freq", "hf"):
            typer.echo(f"{key}: {value}")


def _data(path: str) -> None:
    from jpo.data import preference_pairs, read_records
    from jpo.data.report import Report
    from jpo.errors import DataError

    records = read_records(path)
    typer.echo(
        f"data {path}: {len(records)} records, keys {', '.join(sorted({key for record in records for key in record}))}"
    )
    try:
        report = Report()
        pairs = preference_pairs(records, report=report)
    except DataError as error:
        typer.echo(f"not preference pairs: {error}")
        return
    typer.echo(
        f"{len(pairs)} preference pairs, {sum(pair.joint for pair in pairs)} of them over different instructions\n{report}"
    )


def inspect(
    path: Annotated[
        str, typer.Argument(help="A model (name, directory, GGUF file), an adapter's directory, or a file of records.")
    ],
) -> None:
    """Show what a model, an adapter or a data file holds."""
    if os.path.isfile(os.path.join(path, "adapter_config.json")):
        _adapter(path)
    elif path == "example" or path.endswith((".jsonl", ".json", ".parquet")):
        _data(path)
    else:
        _model(path)


def register(app: typer.Typer) -> None:
    """Adds `jpo inspect`."""
    app.command("inspect")(inspect)
