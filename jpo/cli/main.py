"""The command `jpo`: finds the commands in jpo/cli/commands and turns errors into one line and an exit status.

A command is a module of that package with `register(app)`; adding the file adds the command. Such a module imports
little at its head, so that `jpo --help` stays quick.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from typing import Any

import typer
import typer.completion
from typer.core import TyperGroup

from jpo.cli import commands
from jpo.cli.sharding import given
from jpo.errors import JpoError
from jpo.interrupts import handled, stopped
from jpo.parallel.launch import Relaunch, launch
from jpo.parallel.ranks import current, fail, speaks

_GOES_ON = {"demo", "study", "generate", "feedback", "evaluate"}  # commands that resume by themselves


class _Carried(Exception):
    """An interrupt on its way through typer, which would make a bare status of it; its cause is the interrupt."""


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Carried from error


def _version(asked: bool) -> None:
    if asked:
        from jpo import __version__

        typer.echo(f"jpo {__version__}")
        raise typer.Exit()


def _flowing(text: str) -> str:
    """A docstring as help: its long lines run on, so that the terminal's width breaks them; short ones stay lines."""
    found: list[str] = []
    runs_on = False
    for line in inspect.cleandoc(text).splitlines():
        if runs_on and line:
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
        runs_on = len(line) > 76
    return "\n".join(found)


def build_app() -> typer.Typer:
    """The typer application with every command, sorted by module name."""
    app = typer.Typer(
        name="jpo",
        cls=_Group,
        no_args_is_help=True,
        add_completion=False,  # `jpo completion SHELL` prints the script
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=_version, help="Print the version and stop."
        ),
    ) -> None:
        """Joint Preference Optimization of language models on the CPU.

        First steps: jpo demo --output demo; jpo doctor; jpo train --model tiny --data example --output out.
        """

    for module in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
        importlib.import_module(f"{commands.__name__}.{module.name}").register(app)
    for command in app.registered_commands:
        command.help = _flowing(command.help or (command.callback and command.callback.__doc__) or "")
    return app


def _open_streams() -> None:
    """Standard output and error that the caller closed (`jpo ... 2>&-`) go nowhere, instead of being None: what is
    written to them would fail, and the next file would take their number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 (bad input, one line on stderr), 2 (usage), 130 (Ctrl-C), 143
    (SIGTERM), 129 (SIGHUP).

    JPO_DEBUG=1 shows the traceback of bad input."""
    _open_streams()
    typer.completion.completion_init()  # answers a shell's question for completions (_JPO_COMPLETE), if it is one
    try:
        given.set(sys.argv[1:] if arguments is None else arguments)
        with handled():
            result = build_app()(args=arguments, standalone_mode=False, prog_name="jpo")
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (JpoError, OSError, MemoryError) as error:
        if os.environ.get("JPO_DEBUG") == "1":
            raise
        fail(f"jpo: {_memory(error) if isinstance(error, MemoryError) else error}")
        return 1
    except Relaunch as asked:
        return _launched(asked.ranks, sys.argv[1:] if arguments is None else arguments)
    except (_Carried, typer.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__
        return _interrupted(cause if isinstance(cause, KeyboardInterrupt) else KeyboardInterrupt(), arguments)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # typer's own errors carry one: usage, bad options
            raise
        show = getattr(error, "show", None)
        if show is not None and speaks():  # every rank has the same command line
            show()
        return int(error.exit_code)
    return result if isinstance(result, int) else 0


def _memory(error: MemoryError) -> str:
    return (
        f"not enough memory{f' ({error})' if str(error) else ''}; jpo train --dry-run says what a run needs; less is needed "
        "with --gradient-checkpointing, a smaller --token-budget or --max-length, --storage q8_0"
    )


def _interrupted(error: KeyboardInterrupt, arguments: list[str] | None) -> int:
    command = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    stop = stopped(error, "the same command goes on where it was" if command in _GOES_ON else "")
    if not current().parting:
        fail(f"jpo: {stop}", stop.status)
    elif current().root:
        print(f"jpo: {stop}", file=sys.stderr)
    return stop.status


def _launched(ranks: int, arguments: list[str]) -> int:
    try:
        return launch(ranks, arguments)
    except JpoError as error:
        fail(f"jpo: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
