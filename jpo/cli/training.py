"""What jpo train and jpo sft share: the flags of both, the evaluation sets by name, and how a run begins."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from jpo.cli.dry_run import show_plan
from jpo.cli.options import FIRST, GROUPS, build, compute_for
from jpo.errors import JpoError
from jpo.train.config import TrainingConfig

Model = Annotated[
    str | None,
    typer.Option("--model", rich_help_panel=FIRST, help="smollm2-135m, tiny, a directory, a GGUF file."),
]
EvalData = Annotated[
    list[str] | None,
    typer.Option(
        "--eval-data",
        rich_help_panel=FIRST,
        help="File for evaluation: metrics eval_*; NAME=FILE: eval_NAME_*. May repeat.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", rich_help_panel=GROUPS["output"], help="Go on from the last finished checkpoint.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", rich_help_panel=GROUPS["output"], help="Print tokens, memory and time; write nothing."),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        help="Processes on this machine that share each step, as mpiexec -n N starts them (jpo[mpi]).",
        rich_help_panel=GROUPS["optimization"],
    ),
]
LARGE_BYTES = 256 << 20  # of record files: in memory they take some five times as much
_PACKED = (".gz", ".parquet")  # count fourfold
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)", re.DOTALL)


def evaluation_sets(given: Any) -> dict[str, list[str]] | None:
    """Evaluation files by the name of their set, "" for those without one; None where nothing is given.

    given: paths and NAME=PATH texts (a file of that very name is a path), or, out of YAML, also a mapping of names to
    paths. JpoError for anything else."""
    if isinstance(given, Mapping):
        entries = [(name, path) for name, paths in given.items() for path in _listed(paths)]
    else:
        entries = [_entry(text) for text in _listed(given or [])]
    sets: dict[str, list[str]] = {}
    for name, path in entries:
        if not (isinstance(name, str) and isinstance(path, str)):
            raise JpoError(f"eval_data: expected files, NAME=FILE or a mapping of names to files, got {given!r}")
        sets.setdefault(name, []).append(path)
    return sets or None


def _check(own: Mapping[str, Any]) -> None:
    """JpoError where the YAML file gives a flag of the command itself a value of another type."""
    for name, value in own.items():
        texts = _listed(value) if name == "data" else [value]
        kind = int if name == "ranks" else str
        if name != "eval_data" and value is not None and not all(type(text) is kind for text in texts):
            expected = {"data": "a file, or a list of files", "ranks": "a whole number"}.get(name, "text")
            raise JpoError(f"{name}: expected {expected}, got {value!r}")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _entry(text: Any) -> tuple[str, Any]:
    named = _NAMED.fullmatch(text) if isinstance(text, str) and not os.path.exists(text) else None
    return (named[1], named[2]) if named else ("", text)


def cached(
    config: TrainingConfig, sources: Sequence[Any], dry_run: bool
) -> tuple[TrainingConfig, tempfile.TemporaryDirectory[str] | None]:
    """(the config, a folder to remove in the end): large files are encoded into OUTPUT/cache unless --cache-dir says
    where; for a dry run, which leaves nothing, into a temporary folder."""
    from jpo.data.readers import source_files

    files = [path for source in sources for path in source_files(source) or ()]
    size = sum(os.path.getsize(path) * (4 if path.lower().endswith(_PACKED) else 1) for path in files)
    if config.cache_dir or size <= LARGE_BYTES or getattr(config, "rpo_embeddings", None):
        return config, None
    aside = tempfile.TemporaryDirectory(prefix="jpo-cache-") if dry_run else None
    folder = os.path.join(config.output or "", "cache") if aside is None else aside.name
    typer.echo(f"the records are too many to stand in memory: they are encoded into {folder} and read from there")
    return dataclasses.replace(config, cache_dir=folder), aside


def begin(
    config_class: type[TrainingConfig],
    options: dict[str, Any],
    own: dict[str, Any],
    advice: str,
    check: bool,
    resume: bool,
    dry_run: bool,
    make: Callable[[Any, Any, Any], Any],
) -> tuple[Any, dict[str, list[Any]] | None]:
    """(trainer, its history): options and own flags put together, the model loaded, make(lm, config, evaluation sets)
    trained; history None after a dry run. `advice` follows on what is missing."""
    import jpo
    from jpo.parallel.launch import enter
    from jpo.parallel.ranks import joined

    joined()  # before anything can fail, so that a fault of all ranks is said once, and that of one ends them all
    config = build(config_class, options, own)
    _check(own)
    for name in ("model", "data"):
        if not own[name]:
            raise JpoError(f"--{name} is missing{advice}")
    if not config.output and not dry_run:
        raise JpoError("--output is missing: the directory for the result")
    sets = evaluation_sets(own["eval_data"])
    enter(own["ranks"], dry_run)
    compute = compute_for(config, resume)
    lm = jpo.load(own["model"], storage=config.storage or "auto", compute=compute, check=check and not dry_run)
    config, aside = cached(config, [own["data"], *(sets or {}).values()], dry_run)
    trainer = make(lm, config, sets)
    typer.echo(f"{trainer.told}\n{trainer.shown}\ncompute {lm.compute}{' (auto)' if compute == 'auto' else ''}")
    if dry_run:
        show_plan(trainer.dry_run(own["ranks"]))
        if aside is not None:
            aside.cleanup()
        return trainer, None
    return trainer, trainer.train(resume=resume)
