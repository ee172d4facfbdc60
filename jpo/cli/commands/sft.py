"""jpo sft: supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jpo.cli import training
from jpo.cli.options import FIRST, Check, with_config
from jpo.train.config import SFTConfig


@with_config(SFTConfig)
def sft(
    model: training.Model = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", rich_help_panel=FIRST, help="File, folder or pattern of {instruction, response} (may repeat)."
        ),
    ] = None,
    eval_data: training.EvalData = None,
    check: Check = True,
    ranks: training.Ranks = None,
    resume: training.Resume = False,
    dry_run: training.DryRun = False,
    **options: Any,
) -> None:
    """Fine-tune a model on responses: an adapter, or every weight with --full.

    Leaves an adapter in --output as jpo train does; with --full a Hugging Face directory."""
    own: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data, "ranks": ranks}

    def make(lm: Any, config: Any, sets: Any) -> Any:
        from jpo import SFTTrainer

        return SFTTrainer(lm, own["data"], config, sets)

    trainer, history = training.begin(SFTConfig, options, own, "", check, resume, dry_run, make)
    if history:
        output = trainer.config.output
        typer.echo(f"step {history['step'][-1]}: loss {history['loss'][-1]:.4f}; written to {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo sft`."""
    app.command("sft")(sft)
