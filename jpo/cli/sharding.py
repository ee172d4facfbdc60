"""The flags --executor, --shards and --shard of the stages, and the command's own words, which each shard repeats."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jpo.parallel.shards import Shard

ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Deal the work, as shards, to processes:N, mpi (under mpiexec), dask:ADDRESS or ray:ADDRESS; the same output.",
    ),
]
ShardCount = Annotated[
    int | None, typer.Option("--shards", help="With --executor: how many shards. (default: two a worker)")
]
ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="i/n, i from 0: only this part, into OUTPUT-0000i-of-0000n; for Slurm arrays and Kubernetes indexed jobs. "
        "jpo join puts the parts together.",
    ),
]
given: ContextVar[Sequence[str]] = ContextVar("given", default=())  # the arguments of the command that runs
_OWN = ("--executor", "--shards")


def without_own(arguments: Sequence[str]) -> list[str]:
    """The arguments that every shard repeats: all but --executor and --shards, in either spelling."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _OWN:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in _OWN)):
            kept.append(argument)
    return kept


def over_executor(executor: str, shards: int | None, output: str, journal: str | None = None) -> bool:
    """Runs this command's shards over the executor and joins them into `output`, their journals into the whole's; False
    on a rank that only worked. The command then goes on as one process does, with nothing left to compute or to ask."""
    from jpo.cli.progress import bar
    from jpo.parallel.executors import opened
    from jpo.parallel.shards import join

    with opened(executor) as pool:
        if pool.serving:
            return False
        with bar("shards") as progress:
            count = pool.run(without_own(given.get()), shards, progress)
    join(output, count, journal=journal)
    return True


def part_of_whole(part: Shard, empty: bool = False) -> str:
    """Where a shard's results are; of an empty one, why: records are dealt in blocks that are computed together, so
    that the number of shards changes no bit."""
    text = f"shard {part} of the whole; jpo join puts the shards together"
    return f"{text}; it is empty: there are fewer blocks of records than {part.count} shards" if empty else text


def check_alone(command: str, executor: str | None, shard: str | None) -> None:
    """JpoError where a launcher has started several of a command that neither deals its work nor is told its part."""
    from jpo.parallel.launch import alone

    if not executor and not shard:
        alone(command)
