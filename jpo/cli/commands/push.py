"""jpo push: an adapter or a model to a repository of the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer


def push(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="The --output of jpo train, sft, merge or export: an adapter or a model."),
    ],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; it is made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Only for you and your organization.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch to commit to (default: main).")] = None,
    message: Annotated[str | None, typer.Option("--message", help="The commit's message.")] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", help="One more file of DIR, by name or pattern (may repeat).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent and what stays; send nothing.")
    ] = False,
) -> None:
    """Share an adapter or a model on the Hugging Face hub.

    Weights, configuration, tokenizer, template, card and licence go in one commit. Checkpoints, optimizer state,
    journals of judges, samples and metrics stay here, unless --include names a file.
    Log in once with `hf auth login`, or set HF_TOKEN. Others then use the name: jpo generate --adapter USER/NAME.

    Example: jpo push out me/smollm2-jpo --private --dry-run
    """
    from jpo.hub.names import repository
    from jpo.hub.push import plan
    from jpo.hub.push import push as send

    repo = repository(repo)
    upload = plan(folder, include or ())
    total = sum(size for _, size in upload.files)
    typer.echo(f"{upload.kind} {folder} -> {repo}{'@' + revision if revision else ''}, {total / 1e6:.1f} MB:")
    for name, size in upload.files:
        typer.echo(f"  {name}  {size:,} bytes")
    if upload.left:
        typer.echo(f"stays here: {', '.join(upload.left)}")
    for told in upload.warnings:
        typer.echo(f"note: {told}")
    if dry_run:
        typer.echo("dry run: nothing was sent")
        return
    typer.echo(f"sent: {send(folder, repo, upload, private=private, revision=revision, message=message)}")


def register(app: typer.Typer) -> None:
    """Adds `jpo push`."""
    app.command("push")(push)
