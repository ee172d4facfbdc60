"""What both trainers are: records in memory or in the cache, an adapter, a run of the loop, its estimate and its end.

Knows records of either kind as a sequence with lengths; never a loss. A trainer says what stands below "to be said".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from jpo.data.batches import GroupedOrder, Order, micro_batches
from jpo.data.cache import CachedRecords, Recipe, open_cached
from jpo.data.encoding import Encoded, EncodedPair
from jpo.data.forest import Forest
from jpo.data.records import good_texts
from jpo.data.report import Report
from jpo.data.store import Kind, data_digest
from jpo.model import LanguageModel
from jpo.parallel.ranks import joined
from jpo.parallel.team import Team
from jpo.train import memory
from jpo.train.callbacks import Callbacks
from jpo.train.cards import data_names, run_card
from jpo.train.common import (
    adapter_settings,
    all_tokens,
    check_arguments,
    check_left,
    ensure_adapter,
    largest,
    named_sets,
    probe,
    quickest,
    recipe_of,
    settled,
    tokens_of,
    total_steps,
)
from jpo.train.config import TrainingConfig
from jpo.train.loop import Loop, fingerprint
from jpo.train.ranks import alone, planned, working_together
from jpo.train.samples import asked_of, reread

C = TypeVar("C", bound=TrainingConfig)
R = TypeVar("R", bound=Encoded | EncodedPair)
AnyOrder = Order | GroupedOrder


class Trainer(Generic[C, R]):
    """The common part of SFTTrainer and PreferenceTrainer."""

    unit: Kind

    def __init__(self, lm: LanguageModel, config: C | None, expected: type[C]):
        check_arguments(lm, config, expected)
        self.lm, self.config = lm, settled(lm, config or expected())
        self.report, self.team = Report(), Team()

    # to be said by each trainer

    @property
    def records(self) -> Sequence[R]:
        """The training records in tokens."""
        raise NotImplementedError

    def _read(self, source: Any, report: Report) -> Sequence[Any]:
        """The records of `source` in text; what was dropped is counted in `report`."""
        raise NotImplementedError

    def _encoded(self, given: Sequence[Any]) -> list[R]:
        """Records in tokens."""
        raise NotImplementedError

    def _sequences(self, record: R, /) -> Sequence[Encoded]:
        """The sequences of a record."""
        raise NotImplementedError

    def _forest(self, records: Sequence[R], /) -> Forest:
        """The forest of a micro-batch."""
        raise NotImplementedError

    def _run(self, records: Sequence[R], /, step: int, train: bool) -> dict[str, float]:
        """The metrics of these records; with `train` their gradients are added into lm.trainable.grads."""
        raise NotImplementedError

    def _mean(self, chosen: Sequence[R]) -> dict[str, float]:
        """Metrics without training over a whole set."""
        raise NotImplementedError

    def evaluate(self, source: Any = None, /) -> dict[str, float]:
        """Metrics of `source` (default: each evaluation set) with the prefix eval_ (eval_NAME_ for named sets)."""
        raise NotImplementedError

    def _default_steps(self, per_epoch: int) -> int:
        """Optimizer steps where neither steps nor epochs are asked for."""
        raise NotImplementedError

    def _warmup(self, total: int) -> int:
        """Steps of warm-up in a run of `total`."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """What a run computes before its first step."""

    # records

    def _held_records(self, source: Any, evaluation: Any) -> Sequence[R]:
        """The training records, and in self.eval_sets and self.asked what the evaluation sets hold."""
        self.sources = data_names(source)
        self._recipe = recipe_of(self.unit, self.lm, self.config)
        records = self._encode_all(source) if self.config.cache_dir is None else self._open(source)
        sets = reread(named_sets(evaluation))
        self.eval_sets = {name: self._held(data) for name, data in sets.items()}
        self.asked = asked_of(sets, lambda entry: self._read([entry], Report()), self.encoder, self.config.eval_samples)
        self.memory = memory.check(self.lm, self.config, largest(records, self.config.batch_size))
        return records

    def _encode_all(self, source: Any) -> Sequence[R]:
        """The training records, in memory."""
        given = self._read(source, self.report)
        check_left(given, self.report)
        self.template = self._recipe.template_of(any(record.conversational for record in given))
        self.encoder = self._recipe.encoder(self.template)
        encoded = self._encoded(given)
        self.shown = self.encoder.example(*good_texts(given[0]))  # what is trained, to print before a run
        self.told = self.report.then(self.encoder.report())  # what became of the training records
        return encoded

    def _open(self, source: Any) -> Sequence[R]:
        """The training records, in the cache."""
        found = self._cached(source, self._recipe)
        self.template = found.template
        self.encoder = self._recipe.encoder(self.template)
        self.shown, self.report = found.facts.shown, found.reading
        self.told = self.report.then(found.encoding)
        return found

    def _held(self, source: Any) -> Sequence[R]:
        """Evaluation records, held as the training ones are."""
        if self.config.cache_dir is None:
            return self._encode(source)
        return self._cached(source, dataclasses.replace(self._recipe, template=self.template))

    def _cached(self, source: Any, recipe: Recipe) -> CachedRecords:
        assert self.config.cache_dir is not None
        return open_cached(self.config.cache_dir, source, recipe)

    def _encode(self, source: Any) -> list[R]:
        return self._encoded(self._read(source, self.report))

    def _ensure_adapter(self) -> None:
        ensure_adapter(self.lm, self.config)

    @property
    def sizes(self) -> tuple[int, dict[str, int]]:
        """Records for training, and those of each evaluation set."""
        return len(self.records), {name: len(records) for name, records in self.eval_sets.items()}

    # a run

    def step(self, indices: Sequence[int], step: int) -> dict[str, float]:
        """Add the gradients of these records' loss into lm.trainable.grads; the step's metrics."""
        return self._run([self.records[i] for i in indices], step, train=True)

    def seconds(self, indices: Sequence[int]) -> float:
        """Seconds of a step over these records, by computing one of middle length; changes nothing."""
        assert self.lm.trainable is not None
        chosen = sorted((self.records[i] for i in indices), key=tokens_of)
        middle = chosen[len(chosen) // 2]
        with alone(self):
            seconds = quickest(lambda: self._run([middle], 0, train=True))
        self.lm.trainable.grads[:] = 0
        return seconds * sum(map(tokens_of, chosen)) / tokens_of(middle) / self.team.ranks.size

    def _order(self) -> AnyOrder:
        return Order(len(self.records), self.config.batch_size, self.config.seed)

    def _total(self, order: AnyOrder) -> int:
        return total_steps(self.config, order.steps_per_epoch, self._default_steps(order.steps_per_epoch))

    def train(self, resume: bool = False, callbacks: Callbacks | None = None) -> dict[str, list[Any]]:
        """Train; the history, a mapping of lists (a column of metrics.jsonl each).

        callbacks: jpo.train.Callback objects, or functions that are called with each row."""
        from jpo.train.progress import make_callbacks

        watching = make_callbacks(callbacks, self) if joined().root else []  # what is missing is said at once
        order = self._order()
        total = self._total(order)
        data = data_digest(self.records)
        with working_together(self, resume, lambda config: fingerprint(config, data, order)) as mark:
            self._prepare()
            loop = Loop(self.lm, self, self.config, order, total, self._warmup(total), mark, self.team)
            return loop.run(resume, watching)

    def dry_run(self, ranks: int | None = None) -> dict[str, Any]:
        """Tokens, memory and time that the run would take, by the plan and one probed step, and what so many ranks
        would make of it; writes nothing."""
        order = self._order()
        total = self._total(order)
        step = [self.records[i] for i in order.batch(0)]
        cut = micro_batches([self._sequences(record) for record in step], self.config.token_budget)
        forests = [self._forest([step[i] for i in members]) for members in cut]

        def work() -> None:
            self._run(step, 0, train=True)

        found = probe(self.lm, forests, total, order.steps_per_epoch, work, self.memory)
        over = planned(self, ranks, order, lambda i: self._sequences(self.records[i]), found, work)
        return {self.unit: len(self.records), "tokens_per_epoch": all_tokens(self.records)} | found | over

    def _evaluated(self, source: Any) -> dict[str, float]:
        """Metrics of `source`, or of each evaluation set where it is None, under the prefix eval_ (eval_NAME_)."""
        sets = self.eval_sets if source is None else {"": self._held(source)}
        return {
            f"eval_{name}_{key}" if name else f"eval_{key}": value
            for name, chosen in sets.items()
            if chosen
            for key, value in self._measured(name, chosen).items()
        }

    def _measured(self, name: str, chosen: Sequence[R]) -> dict[str, float]:
        """Metrics of the evaluation set of that name."""
        return self._mean(chosen)

    # the end

    def save(self, folder: str) -> None:
        """The adapter in PEFT's format, or the whole model as a Hugging Face directory where it is trained in full."""
        if self.lm.full:
            self.lm.merge(folder)
        else:
            self.lm.save_adapter(folder, adapter_settings(self.config, self.template, self.lm))

    def card(self, history: Mapping[str, Sequence[Any]], baseline: Mapping[str, float]) -> str:
        """The model card of a finished run, README.md."""
        count = f"{len(self.records)} {self.unit}"
        return run_card(self.lm, self.config, self.template, self.sources, count, history, baseline)
