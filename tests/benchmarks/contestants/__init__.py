"""Every contestant: a function, declared once. To add a peer, write one in a module of this folder.

A contestant gets the case's work (what `work.py` wrote: token ids, records, folders) and `turns`; it sets itself up,
then runs one repetition a turn. It imports its packages inside the function, so that listing needs none of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REGISTRY: dict[str, Contestant] = {}


class LeftOut(Exception):
    """Raised by a contestant that cannot run here; the message says why."""


@dataclass(frozen=True)
class Variant:
    """One way to run a contestant: its options, its allocator; `only` names the cases that it stays within."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    allocator: str = "glibc"
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contestant:
    """`enters` are case names; `needs` maps a distribution to the command that installs it; `gigabytes` bounds the peak
    memory roughly, to know which processes may stay alive side by side."""

    name: str
    run: Callable[..., None]
    enters: tuple[str, ...]
    needs: tuple[str, ...]
    variants: tuple[Variant, ...]
    gigabytes: float

    def missing(self) -> list[str]:
        """The distributions that are not installed."""
        absent = []
        for name in self.needs:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                absent.append(name)
        return absent


@dataclass(frozen=True)
class Entry:
    """A contestant's variant in a case."""

    contestant: Contestant
    variant: Variant

    @property
    def label(self) -> str:
        """As the tables name it."""
        return f"{self.contestant.name}, {self.variant.name}" if self.variant.name else self.contestant.name

    @property
    def ours(self) -> bool:
        """Whether it is jpo."""
        return self.contestant.name == "jpo"


def contestant(
    name: str,
    enters: Sequence[str],
    needs: Sequence[str] = (),
    variants: Sequence[Variant] = (Variant(""),),
    gigabytes: float = 2,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declares the function below it."""

    def declare(run: Callable[..., None]) -> Callable[..., None]:
        REGISTRY[run.__name__] = Contestant(name, run, tuple(enters), tuple(needs), tuple(variants), gigabytes)
        return run

    return declare


def load_all() -> None:
    """Imports every module of this folder, which fills REGISTRY."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def entries(case: str) -> list[Entry]:
    """Who runs in the case, in the order of declaration, ours first."""
    found = [
        Entry(one, variant)
        for one in REGISTRY.values()
        if case in one.enters
        for variant in one.variants
        if not variant.only or case in variant.only
    ]
    return sorted(found, key=lambda entry: not entry.ours)
