"""The micro-batches of a step: what passes over them gave, and how their results join in the pairs' own order.

Knows forests, scores and the objective's results; never models or configurations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo.data.forest import Forest
from jpo.model import Scores
from jpo.objectives import PreferenceLoss

_NONE: np.ndarray[Any, np.dtype[np.float64]] = np.empty(0)


@dataclass
class Part:
    """A micro-batch: its pairs (places in the step), its forest of N sequences, and what forward passes gave."""

    members: list[int]
    forest: Forest
    chosen: int  # of the sequences, which stand before the rejected
    place: int = 0  # its number in the step, whoever computes it
    reference: np.ndarray[Any, Any] | None = None  # (N,)
    scores: Scores | None = None
    policy: np.ndarray[Any, Any] | None = None  # (N,)

    def measured(self) -> Part:
        """What the objective and the metrics read of it, without what only a pass over the model needs."""
        scores = None if self.scores is None else dataclasses.replace(self.scores, logps=_NONE, log_p2=None)
        return dataclasses.replace(self, forest=self.forest.measured(), scores=scores)

    def token_sums(self) -> tuple[np.ndarray[Any, np.dtype[np.float64]], ...]:
        """(N,) sums of mean logit, entropy and hits over each sequence's scored tokens: an entry that several sequences
        share counts in each."""
        scores, sums = self.scores, self.forest.sequence_sums
        assert scores is not None and scores.mean_logit is not None and scores.entropy is not None
        assert scores.hit is not None
        return sums(scores.mean_logit), sums(scores.entropy), sums(scores.hit)


@dataclass(frozen=True)
class Evaluation:
    """What compute_metrics reads of an evaluation set: the pairs' rewards beta (log p - log p_ref) and their margins,
    in the order of the data. Of judged examples (kto) the two sides hold the desirable and the undesirable ones."""

    name: str  # of the set; "" where there is only one
    rewards_chosen: np.ndarray[Any, np.dtype[np.float64]]  # (N,)
    rewards_rejected: np.ndarray[Any, np.dtype[np.float64]]  # (N,)
    margins: np.ndarray[Any, np.dtype[np.float64]]  # (N,); empty where the sides have no partners


def sides_of(parts: Sequence[Part], values: Sequence[Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One vector for each part's sequences -> (those of all chosen sequences, those of all rejected ones)."""
    chosen = [np.asarray(value)[: part.chosen] for part, value in zip(parts, values, strict=True)]
    rejected = [np.asarray(value)[part.chosen :] for part, value in zip(parts, values, strict=True)]
    return np.concatenate(chosen), np.concatenate(rejected)


def in_order(members: Sequence[int], result: PreferenceLoss) -> tuple[np.ndarray[Any, Any], ...]:
    """(rewards of the chosen, of the rejected, margins) of a result whose pairs stand at the places `members`, in the
    order of places; margins and order only where each pair has both sides."""
    w, l = result.rewards_chosen, result.rewards_rejected
    if not len(w) == len(l) == len(members):
        return w, l, np.empty(0)
    order = np.argsort(members, kind="stable")
    return w[order], l[order], (w - l)[order]


def coefficients_of(parts: Sequence[Part], result: PreferenceLoss) -> dict[int, np.ndarray[Any, Any]]:
    """A micro-batch's place -> (N,) d loss / d log p of its sequences, out of an objective over all of them."""
    found, w, l = {}, 0, 0
    for part in parts:
        ends = w + part.chosen, l + part.forest.sequences - part.chosen
        found[part.place] = np.concatenate([result.grad_chosen[w : ends[0]], result.grad_rejected[l : ends[1]]])
        w, l = ends
    return found


def joined_results(results: list[PreferenceLoss], members: list[list[int]]) -> PreferenceLoss:
    """The micro-batches' results as one batch's, in the pairs' own order."""
    order = np.argsort(np.concatenate(members), kind="stable")
    joined = {name: np.concatenate([getattr(r, name) for r in results])[order] for name in _VECTORS}
    return PreferenceLoss(float(joined["losses"].mean()), **joined)


Slots = dict[int, list[Part]]  # a rank's slots and their micro-batches
Found = tuple[list[Part], PreferenceLoss]  # all micro-batches of a step, and the objective over its pairs
_VECTORS = ("losses", "rewards_chosen", "rewards_rejected", "margins", "accuracies", "grad_chosen", "grad_rejected")
