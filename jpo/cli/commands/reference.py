"""jpo reference: the reference model's log-likelihoods of all pairs, before jpo train needs them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from jpo.cli import training
from jpo.cli.options import FIRST, Check, build, compute_for, with_config
from jpo.cli.sharding import ExecutorName, ShardCount, ShardText, check_alone, over_executor, part_of_whole
from jpo.train.config import PreferenceConfig


@with_config(PreferenceConfig)
def reference(
    model: training.Model = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", rich_help_panel=FIRST, help="File of pairs (may repeat: union) or 'example'."),
    ] = None,
    eval_data: training.EvalData = None,
    check: Check = True,
    executor: ExecutorName = None,
    shards: ShardCount = None,
    shard: ShardText = None,
    **options: Any,
) -> None:
    """Compute the reference's log-likelihoods beforehand, over an executor or by shards, into --ref-logps FILE.

    Takes the options of jpo train, of which model, data, scope, template, lengths, compute, storage and token budget
    matter here; jpo train with the same ones and the same --ref-logps then computes none. What FILE holds is kept.

    Example: jpo reference --model smollm2-135m --data pairs.jsonl --ref-logps ref.safetensors --executor processes:2
    """
    import jpo
    from jpo.errors import JpoError
    from jpo.parallel.shards import Shard
    from jpo.train.reference import ReferenceLogps

    own: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data, "adapter": None, "ranks": None}
    config = build(PreferenceConfig, options, own)
    for name, value in (("model", own["model"]), ("data", own["data"]), ("ref-logps", config.ref_logps)):
        if not value:
            raise JpoError(f"--{name} is missing")
    assert config.ref_logps is not None
    check_alone("jpo reference", executor, shard)
    if executor:
        if over_executor(executor, shards, config.ref_logps):
            typer.echo(f"{len(ReferenceLogps(config.ref_logps))} log-likelihoods in {config.ref_logps}")
        return
    part = Shard.parse(shard) if shard else None
    lm = jpo.load(own["model"], storage=config.storage or "auto", compute=compute_for(config, False), check=check)
    sets = training.evaluation_sets(own["eval_data"])
    unbound = dataclasses.replace(config, check_memory=False)  # the estimate is that of training
    trainer = jpo.PreferenceTrainer(lm, own["data"], unbound, sets)
    if not trainer.needs_reference:
        raise JpoError(f"loss {config.loss} has no reference; there is nothing to compute")
    count = trainer.precompute(part)
    where = config.ref_logps if part is None else part_of_whole(part)
    typer.echo(f"{trainer.told}\nlog-likelihoods of {count} pairs computed now, in {where}")


def register(app: typer.Typer) -> None:
    """Adds `jpo reference`."""
    app.command("reference")(reference)
