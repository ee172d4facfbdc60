"""jpo train: preference training."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jpo.cli import training
from jpo.cli.options import FIRST, GROUPS, Check, with_config
from jpo.train.config import PreferenceConfig


@with_config(PreferenceConfig)
def train(
    model: training.Model = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", rich_help_panel=FIRST, help="File, folder or pattern of pairs (may repeat: union), or 'example'."
        ),
    ] = None,
    eval_data: training.EvalData = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", rich_help_panel=GROUPS["adapter"], help="Start from this adapter.")
    ] = None,
    check: Check = True,
    ranks: training.Ranks = None,
    resume: training.Resume = False,
    dry_run: training.DryRun = False,
    **options: Any,
) -> None:
    """Align a model on preference pairs: JPO, DPO and every loss of their family.

    --scope joint is JPO (instruction and response are scored), --scope response DPO.
    Leaves in --output: adapter_model.safetensors and adapter_config.json (PEFT's format), metrics.jsonl, checkpoints.

    Example: jpo train --model tiny --data example --scope joint --output out
    """
    own: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data, "adapter": adapter, "ranks": ranks}
    advice = "; for a first try: --model tiny --data example"

    def make(lm: Any, config: Any, sets: Any) -> Any:
        from jpo import PreferenceTrainer

        if own["adapter"]:
            lm.load_adapter(own["adapter"])
        return PreferenceTrainer(lm, own["data"], config, sets)

    trainer, history = training.begin(PreferenceConfig, options, own, advice, check, resume, dry_run, make)
    if history:
        typer.echo(
            f"step {history['step'][-1]}: loss {history['loss'][-1]:.4f}, margin {history['rewards/margins'][-1]:+.4f}; "
            f"adapter in {trainer.config.output}"
        )


def register(app: typer.Typer) -> None:
    """Adds `jpo train`."""
    app.command("train")(train)
