"""jpo train: preference training."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from jpo.cli.options import Check, build, with_config
from jpo.train.config import PreferenceConfig


@with_config(PreferenceConfig)
def train(
    model: Annotated[str | None, typer.Option("--model", help="smollm2-135m, tiny, a directory, a GGUF file.")] = None,  # noqa: UP045
    data: Annotated[
        list[str] | None, typer.Option("--data", help="File of pairs (may repeat: union) or 'example'.")
    ] = None,  # noqa: UP045
    eval_data: Annotated[Optional[list[str]], typer.Option("--eval-data", help="File of pairs for evaluation.")] = None,  # noqa: UP045
    adapter: Annotated[Optional[str], typer.Option("--adapter", help="Start from this adapter.")] = None,  # noqa: UP045
    storage: Annotated[str, typer.Option("--storage", help="auto, float32, bfloat16 or q8_0.")] = "auto",
    check: Check = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print tokens, memory and time; write nothing.")] = False,
    **options: Any,
) -> None:
    """Align a model on preference pairs: JPO (--scope joint) or DPO (--scope response) and their family.

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
    lm = jpo.load(own["model"], storage=storage, compute=config.compute or "float32", check=check)
    if own["adapter"]:
        lm.load_adapter(own["adapter"])
    trainer = jpo.PreferenceTrainer(lm, own["data"], config, own["eval_data"] or None)
    typer.echo(f"{trainer.report.then(trainer.encoder.report())}\n{trainer.shown}")
    if dry_run:
        for key, value in trainer.dry_run().items():
            typer.echo(f"{key}: {value}")
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
