"""jpo generate: samples of a model for a file of instructions."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any, Optional

import typer


def _done(path: str) -> tuple[list[str], set[tuple[str, float, int, int]]]:
    """Whole lines of an interrupted run, and what they cover."""
    lines: list[str] = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    json.loads(line)
                except ValueError:
                    break
                lines.append(line if line.endswith("\n") else line + "\n")
    rows = [json.loads(line) for line in lines]
    return lines, {(str(row["id"]), row["temperature"], row["seed"], row["sample"]) for row in rows}


def _adapter(lm: Any, folder: str | None) -> dict[str, Any]:
    return dict(lm.load_adapter(folder)) if folder else {}


def _encoder(lm: Any, own: dict[str, Any], template: str | None) -> Any:
    from jpo.data import Encoder, Template
    from jpo.train.preference import make_template

    chosen = (
        make_template(template, lm.tokenizer)
        if template
        else Template.from_dict(own["template"])
        if "template" in own
        else Template()
    )
    limit = int(lm.config["max_position_embeddings"])
    longest = min(int(own.get("max_length", 1024)), limit)
    return Encoder(
        lm.tokenizer,
        chosen,
        longest,
        min(int(own.get("max_prompt_length", 512)), longest - 1),
        own.get("truncation", "keep_start"),
    )


def generate(
    model: Annotated[str, typer.Option("--model", help="smollm2-135m, tiny, a directory, a GGUF file.")],
    input: Annotated[
        str | None, typer.Option("--input", help="File of records with an instruction (and an id).")
    ] = None,  # noqa: UP045
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="An instruction (may repeat), instead of --input.")
    ] = None,  # noqa: UP045
    output: Annotated[Optional[str], typer.Option("--output", help="JSONL file; goes on where it stopped.")] = None,  # noqa: UP045
    adapter: Annotated[Optional[str], typer.Option("--adapter", help="Adapter; its template is used.")] = None,  # noqa: UP045
    template: Annotated[
        str | None, typer.Option("--template", help="paper, tldr, raw, chat, or a text with {instruction}.")
    ] = None,  # noqa: UP045
    n: Annotated[int, typer.Option("--n", help="Samples of each instruction.")] = 1,
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", help="May repeat; 0 is greedy. [default: 1.0]")
    ] = None,  # noqa: UP045
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="0: no cut.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens")] = 400,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    stop: Annotated[Optional[list[str]], typer.Option("--stop", help="A stop string; may repeat.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option("--limit", help="Only the first records.")] = None,  # noqa: UP045
    compute: Annotated[str, typer.Option("--compute")] = "float32",
) -> None:
    """Sample responses: records {id, instruction, output, temperature, seed, sample, model}, one line each."""
    import jpo
    from jpo.data import read_records
    from jpo.errors import JpoError

    if (input is None) == (prompt is None):
        raise JpoError("give either --input or --prompt")
    records: list[dict[str, Any]] = (
        [dict(r) for r in read_records(input)] if input else [{"instruction": p} for p in prompt or []]
    )
    for place, record in enumerate(records):
        if not isinstance(record.get("instruction"), str):
            raise JpoError(f"{input}: record {place + 1} has no text under the key instruction")
        record.setdefault("id", record.get("instruction_id", place))
    identities = [str(record["id"]) for record in records]
    if len(set(identities)) != len(identities):
        raise JpoError(f"{input}: ids repeat; every record needs its own id")
    records = records[:limit]
    lm = jpo.load(model, compute=compute)
    encoder = _encoder(lm, _adapter(lm, adapter), template)
    lines, done = _done(output) if output else ([], set())
    name = os.path.basename(os.path.normpath(adapter)) if adapter else lm.source
    from jpo.cli.writing import open_append

    with open_append(output, lines) as write:
        for degree in temperature or [1.0]:
            for place, record in enumerate(records):
                if all((str(record["id"]), degree, seed, sample) in done for sample in range(n)):
                    continue
                samples = lm.generate(
                    [encoder.prompt_text(record["instruction"])],
                    n=n,
                    temperature=degree,
                    top_p=top_p,
                    top_k=top_k,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    stop=stop or (),
                    ids=[place],
                )[0]
                for sample, completion in enumerate(samples):
                    if (str(record["id"]), degree, seed, sample) not in done:
                        row = {
                            "id": record["id"],
                            "instruction": record["instruction"],
                            "output": completion.text.strip(),
                        }
                        write(
                            row
                            | {
                                "temperature": degree,
                                "seed": seed,
                                "sample": sample,
                                "model": name,
                                "finish_reason": completion.finish_reason,
                            }
                        )


def register(app: typer.Typer) -> None:
    """Adds `jpo generate`."""
    app.command("generate")(generate)
