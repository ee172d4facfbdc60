"""jpo generate: samples of a model for a file of instructions."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Annotated, Any

import typer

from jpo.cli.options import CacheDtype, Check, Model
from jpo.cli.sharding import ExecutorName, ShardCount, ShardText, check_alone, over_executor, part_of_whole
from jpo.defaults import MAX_NEW_TOKENS

Input = Annotated[
    str | None,
    typer.Option("--input", help="Records with an instruction (or prompt); id or instruction_id names them."),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="An instruction (may repeat), instead of --input."),
]
Output = Annotated[
    str | None,
    typer.Option("--output", help="JSONL file; run again to go on where it stopped. (default: standard output)"),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Sample anew, whatever --output holds: it stands until the new file is whole."),
]
Adapter = Annotated[str | None, typer.Option("--adapter", help="Adapter; its template is used.")]
Name = Annotated[
    str | None,
    typer.Option("--name", help="Written as model; jpo evaluate groups by it. (default: the adapter's folder)"),
]
TemplateName = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="spaced, paper, tldr, raw, chat, or a text with {instruction}. (default: the adapter's, else spaced; chat "
        "for conversations where the model has a chat template)",
    ),
]
Count = Annotated[int, typer.Option("--n", help="Samples of each instruction, temperature and seed.")]
Temperatures = Annotated[
    list[float] | None,
    typer.Option("--temperature", help="May repeat; 0 is greedy. (default: 1.0)"),
]
TopP = Annotated[float, typer.Option("--top-p", help="Cut to the likeliest tokens of this probability.")]
TopK = Annotated[int, typer.Option("--top-k", help="Cut to this many tokens; 0: no cut. The paper: 50.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="A sample's length at most.")]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", help="May repeat. (default: 0)"),
]
Stops = Annotated[list[str] | None, typer.Option("--stop", help="A stop string; may repeat.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first records.")]
Compute = Annotated[
    str,
    typer.Option(
        "--compute", help="float32, int16, bfloat16, bfloat16x2, bfloat16x3; auto: the fastest of small error."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be sampled; load no model.")]


def generate(
    model: Model,
    input: Input = None,
    prompt: Prompts = None,
    output: Output = None,
    overwrite: Overwrite = False,
    adapter: Adapter = None,
    name: Name = None,
    template: TemplateName = None,
    n: Count = 1,
    temperature: Temperatures = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    seed: Seeds = None,
    stop: Stops = None,
    limit: Limit = None,
    compute: Compute = "auto",
    cache_dtype: CacheDtype = "float32",
    check: Check = True,
    executor: ExecutorName = None,
    shards: ShardCount = None,
    shard: ShardText = None,
    dry_run: DryRun = False,
) -> None:
    """Sample responses of a model for a file of instructions.

    Records {id, instruction, output, temperature, seed, sample, model, ...}, one line each.
    A sample depends on the seed, the record's id and its own number, not on its neighbours. A resumed --output must
    come from the same model, settings and instructions; anything else is refused. With --overwrite the new samples
    stand in OUTPUT.part until all are drawn, and the same command goes on with them.

    jpo generate --model smollm2-135m --adapter out --input test.jsonl --temperature 0.001 --temperature 0.5
    --temperature 1.0 --top-k 50 --output generations.jsonl
    """
    from jpo.data.readers import check_apart
    from jpo.disk import aside
    from jpo.errors import JpoError
    from jpo.evaluate.items import items_of
    from jpo.evaluate.sampling import Sampling, remaining
    from jpo.parallel.shards import Shard

    check_alone("jpo generate", executor, shard)
    if output and input:
        check_apart(output, [input])
    records = _records(input, prompt, limit)
    settings = Sampling(temperature or [1.0], seed or [0], n, top_p, top_k, max_new_tokens, stop or (), cache_dtype)  # type: ignore[arg-type]
    if dry_run:
        total = len(settings.temperatures) * len(settings.seeds) * n * len(items_of(records, input or "--prompt"))
        left = total if output is None else remaining(f"{output}.part" if overwrite else output, total)
        typer.echo(
            f"{len(records)} instructions x {len(settings.temperatures)} temperatures x {len(settings.seeds)} seeds x "
            f"{n} samples = {total} samples of at most {max_new_tokens} tokens; {left} of them to draw"
        )
        return
    if (executor or shard) and not output:
        raise JpoError("--executor and --shard write files: give --output FILE")
    if executor:
        if not over_executor(executor, shards, str(output)):
            return
        overwrite = False  # the shards did
    if not shard:
        _sample(model, compute, check, adapter, name, template, records, settings, output, None, overwrite)
        return
    part = Shard.parse(shard)
    with aside(part.path(str(output))) as path:
        _sample(model, compute, check, adapter, name, template, records, settings, path, part, overwrite)


def _records(input: str | None, prompt: list[str] | None, limit: int | None) -> list[dict[str, Any]]:
    from jpo.data import read_records
    from jpo.errors import JpoError

    if (input is None) == (prompt is None):
        raise JpoError("give either --input FILE or --prompt TEXT")
    if limit is not None and limit < 1:
        raise JpoError(f"--limit: expected a positive whole number, got {limit}")
    if prompt is not None:
        return [{"id": place, "instruction": text} for place, text in enumerate(prompt)][:limit]
    return read_records(input)[:limit]  # type: ignore[return-value]


def _sample(
    model: str,
    compute: Any,  # which type it may be is the model's to say
    check: bool,
    adapter: str | None,
    name: str | None,
    template: str | None,
    records: list[dict[str, Any]],
    settings: Any,
    output: str | None,
    shard: Any,
    overwrite: bool,
) -> None:
    import jpo
    from jpo.cli.progress import bar
    from jpo.evaluate.sampling import encoder_of, iter_samples

    lm = jpo.load(model, compute=compute, check=check)
    own = lm.load_adapter(adapter) if adapter else {}
    training = own.get("training") or {}
    extra = {"training_seed": training["seed"]} if "seed" in training else {}
    talks = any(isinstance(record.get(key), list) for record in records for key in ("instruction", "prompt"))
    name = name or (os.path.basename(os.path.normpath(adapter)) if adapter else None)
    options: dict[str, Any] = {
        "encoder": encoder_of(lm, own, template, talks),
        "output": output,
        "model": name,
        "shard": shard,
        "overwrite": overwrite and output is not None,
    }
    with bar("samples") if output else contextlib.nullcontext() as progress:
        count = 0
        for row in iter_samples(lm, records, settings, **options, extra=extra, progress=progress):
            count += 1
            if output is None:
                typer.echo(json.dumps(row, ensure_ascii=False))
    if output is not None:
        where = output if shard is None else part_of_whole(shard, empty=not count)
        typer.echo(f"{count} samples in {where}")


def register(app: typer.Typer) -> None:
    """Adds `jpo generate`."""
    app.command("generate")(generate)
