"""jpo inspect: what a model, an adapter or a data file holds."""

from __future__ import annotations

import json as json_
from typing import Annotated, Any

import typer

from jpo.cli.tables import show


def _adapter(path: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(title, rows, facts) of an adapter."""
    from jpo.cli.inspection import shortened
    from jpo.data.templates import Template
    from jpo.formats.peft import read_adapter

    config, tensors = read_adapter(path)
    own = config.extra
    facts = {
        "adapter": path,
        "base_model": config.base_model_name_or_path,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "target_modules": list(config.target_modules),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "use_dora": config.use_dora,
        "bias": config.bias,
        "modules_to_save": list(config.modules_to_save),
        "tensors": len(tensors),
        "values": sum(tensor.size for tensor in tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "jpo": own,
    }
    rows = {key.replace("_", " "): shortened(value) for key, value in facts.items() if key not in ("adapter", "jpo")}
    if "template" in own:
        rows["template"] = Template.from_dict(own["template"]).name
    rows |= {key: own[key] for key in ("compute", "max_length", "max_prompt_length", "truncation") if key in own}
    training = own.get("training")
    if isinstance(training, dict):
        rows["trained with"] = {key: value for key, value in training.items() if value not in (None, False, "none")}
    return f"adapter {path}", rows, facts


def _model(path: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(title, rows, facts) of a model."""
    from jpo.cli.inspection import model_facts, model_rows

    facts = model_facts(path)
    return f"model {facts['model']}", model_rows(facts), facts


def _data(path: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(title, rows, facts) of a file of records: what each reader takes of it."""
    from jpo.data import read_records
    from jpo.data.records import is_judged, preference_pairs, sft_examples
    from jpo.data.report import Report
    from jpo.errors import DataError

    records = read_records(path)
    facts: dict[str, Any] = {
        "data": path,
        "records": len(records),
        "keys": sorted({key for record in records for key in record}),
    }
    rows = {key: value for key, value in facts.items() if key != "data"}
    for name, read in (("preference pairs", preference_pairs), ("examples for jpo sft", sft_examples)):
        report = Report()
        try:
            found: list[Any] = list(read(records, report=report))
        except DataError as error:
            facts[name.replace(" ", "_")], rows[name] = 0, f"none: {error}"
            continue
        facts[name.replace(" ", "_")] = len(found)
        rows[name] = f"{len(found):,}; {report}" if report.dropped else len(found)
        if name == "preference pairs":
            facts["joint_pairs"] = rows["over different instructions"] = sum(pair.joint for pair in found)
    judged = sum(map(is_judged, records))
    if judged:
        facts["judged_examples"] = rows["judged examples (--loss kto)"] = judged
    return f"data {path}", rows, facts


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A model (name, directory, GGUF file), an adapter's directory, a repository of the hub (USER/NAME), or a "
            "file of records."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, lists whole, sizes in bytes.")] = False,
) -> None:
    """Show what a model, an adapter or a data file holds.

    Of a model: family, types of its tensors, what an adapter would train, memory, template, configuration.

    Examples: jpo inspect smollm2-135m; jpo inspect out; jpo inspect pairs.csv.gz
    """
    from jpo.data.readers import is_record_file
    from jpo.formats.peft import is_adapter

    if is_adapter(path):
        title, rows, facts = _adapter(path)
    elif is_record_file(path):
        title, rows, facts = _data(path)
    else:
        title, rows, facts = _model(path)
    if json:
        typer.echo(json_.dumps(facts, indent=2, ensure_ascii=False))
    else:
        show(title, rows)


def register(app: typer.Typer) -> None:
    """Adds `jpo inspect`."""
    app.command("inspect")(inspect)
