"""jpo study: methods x amounts x training seeds x temperatures in one resumable run."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jpo.cli.sharding import check_alone


def _options_help() -> str:
    """The options of a study, out of the class that declares them."""
    from dataclasses import fields

    from jpo.study.config import StudyConfig

    return "\n\n".join(f"{item.name}: {item.metadata['help']}" for item in fields(StudyConfig))


def study(
    file: Annotated[str | None, typer.Argument(help="YAML file of options; they win over the preset's.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="demo, world (all of it); the paper's: helpful, tldr, alpaca_eval.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Directory of the study.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of data, candidates and pairs.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. training_seeds=[0,1,2] or train.beta=0.2.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the stages, the questions to the judge, tokens, hours here and cost; write nothing."
        ),
    ] = False,
    write_preset: Annotated[
        str | None, typer.Option("--write-preset", help="Write the preset's YAML file here, to edit, and stop.")
    ] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of a damaged journal of verdicts keep what is sound, and go on.")
    ] = False,
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            help="Deal sampling, judging and precomputed references to processes:N, mpi (under mpiexec), dask:ADDRESS or "
            "ray:ADDRESS; the same results.",
        ),
    ] = None,
    stage: Annotated[str | None, typer.Option("--stage", hidden=True)] = None,  # what a worker of --executor is told
    shard: Annotated[str | None, typer.Option("--shard", hidden=True)] = None,
    options: Annotated[bool, typer.Option("--options", help="Explain every option of the YAML file and stop.")] = False,
) -> None:
    """Run a study: every method with every training seed, up to win-rates and the report.

    SFT policy, candidates, conditional and joint feedback, their interplay, every method with every training
    seed, samples, win-rates against gold, the report. One resumable run: the same command goes on where it was.

    Examples: jpo study --preset world --output out; jpo study --preset tldr --write-preset tldr.yaml; jpo study
        tldr.yaml
    """
    from jpo.cli.commands.demo import show
    from jpo.disk import write_text
    from jpo.errors import JpoError
    from jpo.parallel.ranks import SWITCH
    from jpo.study import Study, load_config, preset_text, run_study

    if stage and shard and output:
        from jpo.study.dealt import run_shard

        run_shard(output, stage, shard)
        return
    if options:
        typer.echo(_options_help())
        return
    if write_preset:
        if not preset:
            raise JpoError("--write-preset: say which one with --preset")
        write_text(write_preset, preset_text(preset))
        typer.echo(f"{write_preset} written; fill in its files and run: jpo study {write_preset} --output DIR")
        return
    if not file and not preset:
        raise JpoError("give a YAML file or --preset; for a first try: jpo study --preset world --output out")
    config = load_config(file, preset, assign or (), output=output, seed=seed, executor=executor)
    check_alone("jpo study", config.executor, None)
    if not config.output:
        raise JpoError("--output is missing: the directory of the study")
    if dry_run:
        typer.echo(Study(config).describe())
        return
    if config.executor == "mpi":
        os.environ[SWITCH] = "off"  # the other ranks work for this process, which trains by itself
    if results := run_study(config, salvage=salvage):
        show(results, config.output)


def register(app: typer.Typer) -> None:
    """Adds `jpo study`."""
    app.command("study")(study)
