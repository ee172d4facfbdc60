"""jpo sft: supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jpo.cli.dry_run import show_plan
from jpo.cli.options import FIRST, GROUPS, Check, build, compute_for, with_config
from jpo.train.config import SFTConfig


@with_config(SFTConfig)
def sft(
    model: Annotated[
        str | None, typer.Option("--model", rich_help_panel=FIRST, help="smollm2-135m, tiny, a directory, a GGUF file.")
    ] = None,  # noqa: UP045
    data: Annotated[
        list[str] | None,
        typer.Option("--data", rich_help_panel=FIRST, help="File of {instruction, response} (may repeat)."),
    ] = None,  # noqa: UP045
    eval_data: Annotated[
        list[str] | None, typer.Option("--eval-data", rich_help_panel=FIRST, help="File for evaluation.")
    ] = None,  # noqa: UP045
    check: Check = True,
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel=GROUPS["output"], help="Go on from the last finished checkpoint."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=GROUPS["output"], help="Print tokens, memory and time; write nothing."
        ),
    ] = False,
    **options: Any,
) -> None:
    """Fine-tune a model on responses: an adapter, or every weight with --full.

    Leaves an adapter in --output as jpo train does; with --full a Hugging Face directory."""
    import jpo
    from jpo.errors import JpoError

    own: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data}
    config = build(SFTConfig, options, own)
    for name in ("model", "data"):
        if not own[name]:
            raise JpoError(f"--{name} is missing")
    if not config.output and not dry_run:
        raise JpoError("--output is missing: the directory for the result")
    compute = compute_for(config, resume)
    lm = jpo.load(own["model"], storage=config.storage or "auto", compute=compute, check=check and not dry_run)
    trainer = jpo.SFTTrainer(lm, own["data"], config, own["eval_data"] or None)
    typer.echo(f"{trainer.told}\n{trainer.shown}\ncompute {lm.compute}{' (auto)' if compute == 'auto' else ''}")
    if dry_run:
        show_plan(trainer.dry_run())
        return
    history = trainer.train(resume=resume)
    typer.echo(f"step {history['step'][-1]}: loss {history['loss'][-1]:.4f}; written to {config.output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo sft`."""
    app.command("sft")(sft)
