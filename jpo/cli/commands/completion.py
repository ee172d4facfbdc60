"""jpo completion: the script that completes commands and options in a shell."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print the completion script of a shell.

    bash: jpo completion bash >> ~/.bashrc

    zsh: jpo completion zsh >> ~/.zshrc (behind compinit)

    fish: jpo completion fish > ~/.config/fish/completions/jpo.fish
    """
    from typer.completion import get_completion_script

    typer.echo(get_completion_script(prog_name="jpo", complete_var="_JPO_COMPLETE", shell=shell))


def register(app: typer.Typer) -> None:
    """Adds `jpo completion`."""
    app.command("completion")(completion)
