"""Asking in rounds: answers in, refit, the next comparisons out, while people go on answering.

An item's vector is the model's mean hidden state; all of them are read once, before the first round. A refit is a
linear reward over the vectors (milliseconds), or an adapter trained on the answers so far. What was asked stands in
the project's store, so that a server that is started again goes on in the same round. Knows projects and models;
never pages.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from jpo.errors import JpoError
from jpo.feedback.rounds import CHOSEN, Pool, score
from jpo.feedback.selection import Strategy, fit_head, next_batch
from jpo.web.project import Project

Refit = Literal["linear", "adapter"]
REFITS: tuple[str, ...] = get_args(Refit)
_TRAINING = {"scope": "joint", "batch_size": 8, "epochs": 3, "learning_rate": 2e-4, "warmup_steps": 2}
Array = np.ndarray[Any, Any]


class Rounds:
    """The next `count` comparisons of a project, by a strategy of jpo.feedback.selection.

    lm, encoder: the model and how its texts are made (None: for `random`, which needs none). stored: what
    lm.load_adapter returned; the first round's margins are then that adapter's. training: options of the adapter that
    is trained after each round, where refit is "adapter".
    """

    def __init__(
        self,
        project: Project,
        strategy: Strategy,
        count: int,
        lm: Any = None,
        encoder: Any = None,
        stored: Mapping[str, Any] | None = None,
        refit: Refit = "linear",
        training: Mapping[str, Any] | None = None,
    ):
        if refit not in REFITS:
            raise JpoError(f"refit: expected one of {', '.join(REFITS)}, got {refit!r}")
        self.project, self.strategy, self.count, self.refit = project, strategy, count, refit
        self._lm, self._encoder, self._stored = lm, encoder, stored
        self._training = {**_TRAINING, **(training or {})}
        self._items = [item for item in project.items if item.gold is None]
        self._features: Array | None = None

    def choose(self) -> list[str]:
        """Keys of the items to ask next, in no order that matters; none are left where it is empty."""
        places = {item.key: place for place, item in enumerate(self._items)}
        asked = [places[key] for key in self.project.asked() if key in places]
        if len(asked) == len(self._items):
            return []
        margins = self._margins(places)
        seed = self.project.rules.seed
        batch = next_batch(self.strategy, self.count, margins, self._features, answered=asked, seed=seed)
        return [self._items[place].key for place in batch]

    def _margins(self, places: Mapping[str, int]) -> Array:
        """D (N,) of all items, by what is answered so far."""
        if self.strategy == "random":
            return np.zeros(len(self._items))
        if self._features is None:
            whole = self._scored(self._stored)
            self._features = whole.features
            if self._stored is not None and not self.project.answers():
                return np.asarray(whole.margins)
        if self.refit == "adapter" and (margins := self._by_adapter()) is not None:
            return margins
        answers = self._answers(places)
        rows = self._features[list(answers)]
        return np.asarray(self._features @ fit_head(rows, list(answers.values())))

    def _scored(self, adapter: Mapping[str, Any] | None) -> Any:
        return score(self._lm, Pool(asked=[item.candidate for item in self._items]), self._encoder, adapter)

    def _answers(self, places: Mapping[str, int]) -> dict[int, float]:
        """place -> how far side 0 was chosen, the mean over its annotators; skipped ones are left out."""
        said: dict[int, list[float]] = {}
        for answer in self.project.answers():
            key = answer.showing.item
            if key in places and answer.showing.again == 0 and answer.feedback is not None:
                said.setdefault(places[key], []).append(CHOSEN[answer.feedback])
        return {place: statistics.fmean(values) for place, values in said.items()}

    def _by_adapter(self) -> Array | None:
        """Margins of a new adapter, trained on all answers so far; None where nothing is decided yet."""
        from jpo import PreferenceConfig, PreferenceTrainer
        from jpo.feedback.pairs import preferences_from_feedback

        pairs = preferences_from_feedback([row for row in self.project.rows() if row["feedback"] is not None])
        if not pairs:
            return None
        self._lm.remove_adapter()
        config = PreferenceConfig(**self._training, seed=self.project.rules.seed)
        PreferenceTrainer(self._lm, pairs, config).train()
        return np.asarray(self._scored({"training": self._training}).margins)
