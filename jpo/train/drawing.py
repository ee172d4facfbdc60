"""Samples of a model in training, dealt to the ranks of its run: the first asks, all draw, whoever holds which prompt.

Prompts are cut into the step's slots, so that the texts do not depend on the number of ranks. Knows prompts and ranks;
never what becomes of the texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jpo.parallel.team import Team


def drawn(lm: Any, team: Team, prompts: Sequence[str], reference: bool, **options: Any) -> list[str]:
    """On the first rank, while the others serve: a sample of each prompt, of the model or (adapter off) of its
    reference. options: those of lm.generate."""
    team.ranks.bcast((list(prompts), reference, options))
    return _drawn(lm, team, prompts, reference, options)


def serve(lm: Any, team: Team) -> None:
    """On the other ranks: draw what the first asks for, until it dismisses them."""
    while (asked := team.ranks.bcast(None)) is not None:
        _drawn(lm, team, *asked)


def dismiss(team: Team) -> None:
    """On the first rank: nothing more will be asked."""
    team.ranks.bcast(None)


def _drawn(lm: Any, team: Team, prompts: Sequence[str], reference: bool, options: dict[str, Any]) -> list[str]:
    def texts(places: Sequence[int]) -> np.ndarray[Any, Any]:
        found = lm.generate([prompts[place] for place in places], ids=list(places), **options)
        return np.array([completions[0].text.strip() for completions in found], dtype=object)

    with lm.disable_adapter() if reference else contextlib.nullcontext():
        return list(team.mapped(range(len(prompts)), texts))
