"""The next round of feedback: candidates, what is answered of them and a model in, the candidates to ask next out.

An item's vector is the reference model's mean hidden state over instruction and response. A pair's margin D is the
adapter's: beta times what training changed in the first item's log-likelihood less that of the second, in the scope and
with the beta that the adapter was trained with. Without an adapter D is that of a linear reward over the vectors,
fitted to the answers so far. Knows records and models; how a batch is chosen stands in jpo.feedback.selection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jpo.data.readers import Record
from jpo.data.records import Candidate, candidates, feedback_candidates
from jpo.data.report import Report
from jpo.data.texts import Text, text_key
from jpo.errors import DataError, JpoError
from jpo.feedback.pairs import majority_votes
from jpo.feedback.selection import Strategy, fit_head, next_batch, probability, scaled
from jpo.train.config import PreferenceConfig

Progress = Callable[[int, int | None], None]
_ITEMS_PER_PASS = 16
CHOSEN = {0: 1.0, 1: 0.0, 2: 0.5}  # feedback -> how far the first item was chosen


@dataclass
class Pool:
    """What can be asked, as records and as candidates of the same order, and what is answered, one a comparison."""

    records: list[dict[str, Any]] = field(default_factory=list)
    asked: list[Candidate] = field(default_factory=list)
    answered: list[Candidate] = field(default_factory=list)

    @property
    def pairs(self) -> list[Candidate]:
        """Those to ask, then those that are answered."""
        return [*self.asked, *self.answered]


@dataclass(frozen=True)
class Choice:
    """The records to ask next, in their order, and what to tell about them."""

    records: list[dict[str, Any]]
    left: int  # candidates that could have been asked
    answered: int
    informative: tuple[float, float] | None = None  # mean p(1-p) of the chosen, and of all that could be asked


def comparison_key(candidate: Candidate) -> tuple[tuple[str, str], ...]:
    """What makes two candidates one comparison, whichever side stands first."""
    sides = (candidate.instruction_0, candidate.response_0), (candidate.instruction_1, candidate.response_1)
    return tuple(sorted((text_key(instruction), text_key(response)) for instruction, response in sides))


def pool_of(records: Sequence[Any], feedback: Sequence[Any] = (), report: Report | None = None) -> Pool:
    """Candidates without those that are answered: in `feedback` (records of jpo feedback or jpo annotate), or by their
    own key feedback. What a person skipped counts as asked; a judge's failed verdict may be asked again. Candidates
    that stand twice, also with sides exchanged, are asked once."""
    report = Report() if report is None else report
    found = []
    for index, record in enumerate(records):
        place = record if isinstance(record, Record) else Record(record, "records", f"[{index}]")
        found += [(dict(place), candidate) for candidate in candidates([place], report=report)]
    report.kept = 0
    judged = [*feedback_candidates(feedback, "feedback"), *(candidate for _, candidate in found)]
    decided = [candidate for candidate in judged if candidate.feedback is not None]
    skipped = [candidate for candidate in judged if candidate.extra.get("failure") == "skipped"]
    known = {comparison_key(candidate) for candidate in (*decided, *skipped)}
    pool = Pool(answered=majority_votes(decided)[0])
    seen = set()
    for record, candidate in found:
        key = comparison_key(candidate)
        if key in known:
            report.drop("is answered already", candidate.where)
        elif key in seen:
            report.drop("stands twice", candidate.where)
        elif len(set(key)) < 2:
            report.drop("both sides are equal", candidate.where)
        else:
            seen.add(key)
            unasked = {name: value for name, value in record.items() if name not in ("feedback", "failure")}
            pool.records.append(unasked)
            pool.asked.append(candidate)
            report.kept += 1
    return pool


@dataclass(frozen=True)
class Scored:
    """What a model says of a pool's N pairs: features (N, H), scaled, and margins D (N,)."""

    features: np.ndarray[Any, Any]
    margins: np.ndarray[Any, Any]


def score(
    lm: Any, pool: Pool, encoder: Any, adapter: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> Scored:
    """Features and margins of pool.pairs under `lm`. adapter: what lm.load_adapter returned; None: a linear reward.

    Every different item is passed through the model once (with an adapter three times). DataError names the file and
    line of a pair that cannot be encoded.
    """
    places: dict[tuple[str, str], int] = {}
    items: list[tuple[Text, Text, str]] = []
    sides = np.empty((len(pool.pairs), 2), dtype=np.int64)
    for row, pair in enumerate(pool.pairs):
        both = ((pair.instruction_0, pair.response_0), (pair.instruction_1, pair.response_1))
        for side, (instruction, response) in enumerate(both):
            key = (text_key(instruction), text_key(response))
            if key not in places:
                places[key] = len(items)
                items.append((instruction, response, pair.where))
            sides[row, side] = places[key]
    vectors, changes = _items_scored(lm, items, encoder, adapter, progress)
    features = scaled(vectors[sides[:, 0]] - vectors[sides[:, 1]])
    if changes is not None:
        margins = changes[sides[:, 0]] - changes[sides[:, 1]]
    else:
        first = len(pool.asked)
        margins = features @ fit_head(features[first:], [CHOSEN[int(pair.feedback or 0)] for pair in pool.answered])
    for pair, row in zip(pool.pairs, ~np.isfinite(margins), strict=True):
        if row:
            raise DataError(
                f"{pair.where}: the model's margin is no finite number; look at the adapter with jpo inspect"
            )
    return Scored(features, margins)


def _items_scored(
    lm: Any,
    items: Sequence[tuple[Text, Text, str]],
    encoder: Any,
    adapter: Mapping[str, Any] | None,
    progress: Progress | None,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """(mean hidden states (N, H), beta times the adapter's change of log-likelihood (N,) or None) of N items."""
    training = dict((adapter or {}).get("training") or {})
    default = PreferenceConfig()
    scope, beta = training.get("scope", default.scope), float(training.get("beta", default.beta))
    vectors = np.empty((len(items), lm.config["hidden_size"]))
    changes = None if adapter is None else np.empty(len(items))
    for start in range(0, len(items), _ITEMS_PER_PASS):
        part = items[start : start + _ITEMS_PER_PASS]
        encoded = [_encoded(encoder, *item) for item in part]
        stop = start + len(part)
        vectors[start:stop] = lm.mean_hidden([[*one.prompt, *one.response] for one in encoded])
        if changes is not None:
            ids = [(one.prompt, one.response) for one in encoded]
            own, reference = (lm.sequence_logps_ids(ids, scope=scope, adapter=on) for on in (True, False))
            changes[start:stop] = beta * (own - reference)
        if progress is not None:
            progress(stop, len(items))
    return vectors, changes


def _encoded(encoder: Any, instruction: Text, response: Text, where: str) -> Any:
    try:
        found = encoder.encode(instruction, response)
    except JpoError as error:
        raise DataError(f"{where}: {error}") from None
    if found.too_long:
        raise DataError(
            f"{where}: {found.too_long}; the adapter's training drops such pairs (truncation: drop): leave it out"
        )
    return found


def choose(strategy: Strategy, count: int, pool: Pool, scored: Scored | None = None, seed: int = 0) -> Choice:
    """The next batch of a pool. scored: as `score` gave it; `random` needs none. JpoError where nothing is left."""
    left, total = len(pool.asked), len(pool.pairs)
    if not left:
        raise JpoError(
            "every candidate is answered already: nothing is left to ask; make more with jpo pairs --candidates"
        )
    if scored is None and strategy != "random":
        raise JpoError(f"{strategy} needs the model's margins; give a model (--model)")
    margins = np.zeros(total) if scored is None else scored.margins
    features = None if scored is None else scored.features
    places = next_batch(strategy, count, margins, features, answered=range(left, total), seed=seed)
    informative = None
    if scored is not None:
        spread = probability(margins[:left]) * (1 - probability(margins[:left]))
        informative = (float(spread[places].mean()), float(spread.mean()))
    return Choice([pool.records[place] for place in places], left, len(pool.answered), informative)
