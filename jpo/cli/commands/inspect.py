"""jpo inspect: what a model, an adapter or a data file holds."""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Annotated, Any

import typer

from jpo.cli.tables import show


def _adapter(path: str) -> None:
    from jpo.formats.peft import read_adapter

    config, tensors = read_adapter(path)
    rows = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "targets": config.target_modules,
        "base model": config.base_model_name_or_path,
        "tensors": len(tensors),
        "values": sum(tensor.size for tensor in tensors.values()),
    }
    show(f"adapter {path}", rows | config.extra)


def _model(path: str) -> None:
    from jpo.formats import load_checkpoint

    checkpoint = load_checkpoint(path)
    kinds = Counter(tensor.dtype for tensor in checkpoint.tensors.values())
    size = sum(tensor.data.nbytes for tensor in checkpoint.tensors.values())
    values = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    rows = {
        "tensors": len(checkpoint.tensors),
        "values": values,
        "MiB": round(size / 2**20, 1),
        "stored as": dict(kinds),
    }
    own = {key: value for key, value in checkpoint.config.items() if key not in ("inv_freq", "hf")}
    show(f"model {checkpoint.source}", rows | own)


def _data(path: str) -> None:
    from jpo.data import preference_pairs, read_records
    from jpo.data.report import Report
    from jpo.errors import DataError

    records = read_records(path)
    rows: dict[str, Any] = {
        "records": len(records),
        "keys": sorted({key for record in records for key in record}),
    }
    try:
        report = Report()
        pairs = preference_pairs(records, report=report)
    except DataError as error:
        show(f"data {path}", rows | {"preference pairs": f"none: {error}"})
        return
    rows |= {"preference pairs": len(pairs), "over different instructions": sum(pair.joint for pair in pairs)}
    show(f"data {path}", rows | {"read": str(report)})


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
