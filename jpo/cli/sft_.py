"""jpo sft: supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from jpo.cli.options import build, with_config
from jpo.train.config import SFTConfig


@with_config(SFTConfig)
def sft(
    model: Annotated[str | None, typer.Option("--model", help="smollm2-135m, tiny, a directory, a GGUF file.")] = None,  # noqa: UP045
    data: Annotated[
        list[str] | None, typer.Option("--data", help="File of {instruction, response} (may repeat).")
    ] = None,  # noqa: UP045
    eval_data: Annotated[Optional[list[str]], typer.Option("--eval-data", help="File for evaluation.")] = None,  # noqa: UP045
    compute: Annotated[str, typer.Option("--compute", help="Products: float32, int16 or bfloat16.")] = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished checkpoint.")] = False,
    **options: Any,
) -> None:
    """Fine-tune a model on responses: an adapter, or every weight with --full (a Hugging Face directory then)."""
    import jpo
    from jpo.errors import JpoError

    own: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data}
    config = build(SFTConfig, options, own)
    for name in ("model", "data"):
        if not own[name]:
            raise JpoError(f"--{name} is missing")
    if not config.output:
        raise JpoError("--output is missing: the directory for the result")
    trainer = jpo.SFTTrainer(jpo.load(own["model"], compute=compute), own["data"], config, own["eval_data"] or None)
    typer.echo(f"{trainer.report}\n{trainer.encoder.report()}".strip())
    history = trainer.train(resume=resume)
    typer.echo(f"step {history['step'][-1]}: loss {history['loss'][-1]:.4f}; written to {config.output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo sft`."""
    app.command("sft")(sft)
