"""The command `jpo`: finds the commands in jpo/cli/commands and turns errors into one line and an exit status.

A command is a module of that package with `register(app)`; adding the file adds the command. Such a module imports
little at its head, so that `jpo --help` stays quick.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import typer

from jpo.cli import commands
from jpo.errors import JpoError


def build_app() -> typer.Typer:
    """The typer application with every command, sorted by module name."""
    app = typer.Typer(
        name="jpo",
        help="Joint Preference Optimization of language models on the CPU.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def root() -> None:  # keeps "jpo COMMAND" even if there is a single command
        """Joint Preference Optimization of language models on the CPU."""

    for module in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
        importlib.import_module(f"{commands.__name__}.{module.name}").register(app)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 (bad input, one line on stderr), 2 (usage), 130 (interrupt).

    JPO_DEBUG=1 shows the traceback of bad input."""
    try:
        result = build_app()(args=arguments, standalone_mode=False)
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (JpoError, OSError) as error:
        if os.environ.get("JPO_DEBUG") == "1":
            raise
        print(f"jpo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        print("jpo: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not hasattr(error, "exit_code"):  # typer's own errors carry one: usage, bad options
            raise
        show = getattr(error, "show", None)
        if show is not None:
            show()
        return int(error.exit_code)
    return result if isinstance(result, int) else 0
