"""jpo train: preference training."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jpo.cli.dry_run import show_plan
from jpo.cli.options import FIRST, GROUPS, Check, build, compute_for, with_config
from jpo.train.config import PreferenceConfig


@with_config(PreferenceConfig)
def train(
    model: Annotated[
        str | None, typer.Option("--model", rich_help_panel=FIRST, help="smollm2-135m, tiny, a directory, a GGUF file.")
    ] = None,  # noqa: UP045
    data: Annotated[
        list[str] | None,
        typer.Option("--data", rich_help_panel=FIRST, help="File of pairs (may repeat: union) or 'example'."),
    ] = None,  # noqa: UP045
    eval_data: Annotated[
        list[str] | None, typer.Option("--eval-data", rich_help_panel=FIRST, help="File of pairs for evaluation.")
    ] = None,  # noqa: UP045
    adapter: Annotated[
        str | None, typer.Option("--adapter", rich_help_panel=GROUPS["adapter"], help="Start from this adapter.")
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
    """Align a model on preference pairs: JPO, DPO and every loss of their family.

    --scope joint is JPO (instruction and response are scored), --scope response DPO.
    Leaves in --output: adapter_model.safetensors and adapter_config.json (PEFT's format), metrics.jsonl, checkpoints.

    Example: jpo train --model tiny --data example --scope joint --output out
    """
    import jpo
    from jpo.errors import JpoError

    own: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data, "adapter": adapter}
    config = build(PreferenceConfig, options, own)
    for name in ("model", "data"):
        if not own[name]:
            raise JpoError(f"--{name} is missing; for a first try: --model tiny --data example")
    if not config.output and not dry_run:
        raise JpoError("--output is missing: the directory for the adapter")
    compute = compute_for(config, resume)
    lm = jpo.load(own["model"], storage=config.storage or "auto", compute=compute, check=check and not dry_run)
    if own["adapter"]:
        lm.load_adapter(own["adapter"])
    trainer = jpo.PreferenceTrainer(lm, own["data"], config, own["eval_data"] or None)
    typer.echo(f"{trainer.told}\n{trainer.shown}\ncompute {lm.compute}{' (auto)' if compute == 'auto' else ''}")
    if dry_run:
        show_plan(trainer.dry_run())
        return
    history = trainer.train(resume=resume)
    if history:
        typer.echo(
            f"step {history['step'][-1]}: loss {history['loss'][-1]:.4f}, margin {history['rewards/margins'][-1]:+.4f}; "
            f"adapter in {config.output}"
        )


def register(app: typer.Typer) -> None:
    """Adds `jpo train`."""
    app.command("train")(train)
