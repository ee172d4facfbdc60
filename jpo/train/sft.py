"""SFTTrainer: the mean negative log-likelihood of response tokens, packed (a forest of roots and their responses)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jpo.data.batches import Order, micro_batches
from jpo.data.cache import open_cached
from jpo.data.encoding import Encoded
from jpo.data.forest import build_forest
from jpo.data.readers import read_records
from jpo.data.records import Example, sft_examples
from jpo.data.report import Report
from jpo.data.store import data_digest
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
    total_steps,
)
from jpo.train.config import DEFAULT_EPOCHS, SFTConfig
from jpo.train.loop import Loop, fingerprint
from jpo.train.ranks import alone, planned, working_together
from jpo.train.samples import asked_of, reread

_AT_ONCE = 1 << 14  # examples of an evaluation set that are looked at together


class SFTTrainer:
    """Fine-tunes `lm` on {instruction, response} examples: an adapter, or every weight with config.full.

    examples: path(s), records or an iterable of mappings; eval_examples: the same, or a mapping of names to such sets.
    Constructing a trainer writes nothing."""

    unit = "examples"

    def __init__(self, lm: LanguageModel, examples: Any, config: SFTConfig | None = None, eval_examples: Any = None):
        check_arguments(lm, config, SFTConfig)
        self.lm, self.config = lm, settled(lm, config or SFTConfig())
        self.report, self.sources = Report(), data_names(examples)
        self._recipe = recipe_of("examples", lm, self.config)
        self.examples: Sequence[Encoded]
        if self.config.cache_dir is None:
            self._encode_all(examples)
        else:
            self._open(self.config.cache_dir, examples)
        evaluated = reread(named_sets(eval_examples))
        self.eval_sets = {name: self._held(data) for name, data in evaluated.items()}
        self.asked = asked_of(evaluated, _examples_of, self.encoder, self.config.eval_samples)
        self.team = Team()
        self.memory = memory.check(lm, self.config, largest(self.examples, self.config.batch_size))
        if self.config.full:
            lm.enable_full()
        else:
            ensure_adapter(lm, self.config)

    def _encode_all(self, examples: Any) -> None:
        """The training examples, in memory."""
        given = self._read(examples)
        check_left(given, self.report)
        self.template = self._recipe.template_of(any(example.conversational for example in given))
        self.encoder = self._recipe.encoder(self.template)
        self.examples = self.encoder.examples(given)
        self.shown = self.encoder.example(given[0].instruction, given[0].response)  # to print before a run
        self.told = self.report.then(self.encoder.report())  # what became of the training records

    def _open(self, folder: str, examples: Any) -> None:
        """The training examples, in the cache."""
        self.examples = found = open_cached(folder, examples, self._recipe)
        self.template = found.template
        self.encoder = self._recipe.encoder(self.template)
        self.shown, self.report = found.facts.shown, found.reading
        self.told = self.report.then(found.encoding)

    def _held(self, examples: Any) -> Sequence[Encoded]:
        """Evaluation examples, held as the training ones are."""
        if self.config.cache_dir is None:
            return self._encode(examples)
        return open_cached(self.config.cache_dir, examples, replace(self._recipe, template=self.template))

    def _encode(self, examples: Any) -> list[Encoded]:
        return self.encoder.examples(self._read(examples))

    def _read(self, examples: Any) -> list[Example]:
        if isinstance(examples, (list, tuple)) and examples and all(isinstance(entry, Example) for entry in examples):
            return list(examples)
        return sft_examples(read_records(examples), report=self.report)

    def step(self, indices: Sequence[int], step: int) -> dict[str, float]:
        """Add the gradients of these examples' token mean into lm.trainable.grads; the step's metrics."""
        return self._run([self.examples[i] for i in indices], step, train=True)

    def _run(self, examples: Sequence[Encoded], step: int, train: bool) -> dict[str, float]:
        """Over ranks: each computes its slots' examples, and all are given the metrics of the whole."""
        self.team.tree.begin()
        tokens = sum(len(example.response) for example in examples)
        dealt = self.team.deal([(example,) for example in examples])
        seed = self.config.dropout_seed(step) if train else None
        parts = []
        for slot in self.team.own:
            chosen = [examples[i] for i in dealt[slot]]
            for members in micro_batches([(one,) for one in chosen], self.config.token_budget):
                parts.append(self._part([chosen[i] for i in members], tokens, seed))
            if train:
                assert self.lm.trainable is not None
                self.team.close(slot, self.lm.trainable.grads)
        total = entropy = hits = rows = entries = 0.0
        for part in (part for own in self.team.ranks.allgather(parts) for part in own):
            total, entropy, hits = total - part[0], entropy + part[1], hits + part[2]
            rows, entries = rows + part[3], entries + part[4]
        return {
            "loss": total / tokens,
            "entropy": entropy / entries,
            "mean_token_accuracy": hits / entries,
            "num_tokens": float(sum(map(len, examples))),
            "rows_computed": rows,
        }

    def _part(self, chunk: list[Encoded], tokens: int, seed: int | None) -> tuple[float, float, float, int, int]:
        """One micro-batch of a step of `tokens` response tokens, with backward where a seed is given: the sums of log
        p, entropy and hits; rows and loss entries."""
        forest = build_forest([(example.prompt, example.response) for example in chunk], "response")
        scores = self.lm.forward(forest, keep=seed is not None, stats=True, dropout_seed=seed)
        assert scores.entropy is not None and scores.hit is not None
        if seed is not None:
            self.lm.backward(forest.entry_coefficients(np.full(len(chunk), -1.0 / tokens)))
        sums = float(forest.sequence_sums(scores.logps).sum()), float(scores.entropy.sum()), float(scores.hit.sum())
        return *sums, forest.rows, len(scores.hit)

    @property
    def sizes(self) -> tuple[int, dict[str, int]]:
        """Examples for training, and those of each evaluation set."""
        return len(self.examples), {name: len(examples) for name, examples in self.eval_sets.items()}

    def seconds(self, indices: Sequence[int]) -> float:
        """Seconds of a step over these examples, by computing one of middle length; changes nothing."""
        assert self.lm.trainable is not None
        chosen = sorted((self.examples[i] for i in indices), key=len)
        middle = chosen[len(chosen) // 2]
        with alone(self):
            seconds = quickest(lambda: self._run([middle], 0, train=True))
        self.lm.trainable.grads[:] = 0
        return seconds * sum(map(len, chosen)) / len(middle) / self.team.ranks.size

    def _total(self, order: Order) -> int:
        return total_steps(self.config, order.steps_per_epoch, DEFAULT_EPOCHS * order.steps_per_epoch)

    def train(self, resume: bool = False, callbacks: Callbacks | None = None) -> dict[str, list[Any]]:
        """Train; the history, a mapping of lists. callbacks: jpo.train.Callback objects, or functions of each row."""
        from jpo.train.progress import make_callbacks

        watching = make_callbacks(callbacks, self) if joined().root else []  # what is missing is said at once
        order = Order(len(self.examples), self.config.batch_size, self.config.seed)
        total = self._total(order)
        asked = self.config.warmup_steps
        warmup = asked if asked is not None else round(self.config.warmup_ratio * total)
        data = data_digest(self.examples)
        with working_together(self, resume, lambda config: fingerprint(config, data, order)) as mark:
            loop = Loop(self.lm, self, self.config, order, total, warmup, mark, self.team)
            return loop.run(resume, watching)

    def dry_run(self, ranks: int | None = None) -> dict[str, Any]:
        """Tokens, memory and time that the run would take, by one probed step, and what so many ranks would make of it;
        writes nothing."""
        order = Order(len(self.examples), self.config.batch_size, self.config.seed)
        total = self._total(order)
        step = [self.examples[i] for i in order.batch(0)]
        cut = micro_batches([(example,) for example in step], self.config.token_budget)
        forests = [build_forest([(step[i].prompt, step[i].response) for i in members], "response") for members in cut]

        def work() -> None:
            self._run(step, 0, train=True)

        found = probe(self.lm, forests, total, order.steps_per_epoch, work, self.memory)
        over = planned(self, ranks, order, lambda i: (self.examples[i],), found, work)
        return {"examples": len(self.examples), "tokens_per_epoch": all_tokens(self.examples)} | found | over

    def save(self, folder: str) -> None:
        """The adapter in PEFT's format, or the whole model as a Hugging Face directory."""
        if self.lm.full:
            self.lm.merge(folder)
        else:
            self.lm.save_adapter(folder, adapter_settings(self.config, self.template, self.lm))

    def card(self, history: Mapping[str, Sequence[Any]], baseline: Mapping[str, float]) -> str:
        """The model card of a finished run, README.md."""
        count = f"{len(self.examples)} examples"
        return run_card(self.lm, self.config, self.template, self.sources, count, history, baseline)

    def evaluate(self, examples: Any = None) -> dict[str, float]:
        """Metrics on `examples` (default: each evaluation set) with the prefix eval_ (eval_NAME_ for named sets)."""
        sets = self.eval_sets if examples is None else {"": self._held(examples)}
        return {
            f"eval_{name}_{key}" if name else f"eval_{key}": value
            for name, chosen in sets.items()
            if chosen
            for key, value in self._mean(chosen).items()
        }

    def _mean(self, chosen: Sequence[Encoded]) -> dict[str, float]:
        """Metrics without training over all tokens: at once, of large sets in parts."""
        rows = []
        for start in range(0, len(chosen), _AT_ONCE):
            part = chosen[start : start + _AT_ONCE]
            rows.append((sum(len(example.response) for example in part), self._run(part, 0, train=False)))
        if len(rows) == 1:
            return rows[0][1]
        whole = sum(count for count, _ in rows)
        sums = ("num_tokens", "rows_computed")
        return {
            key: sum(row[key] if key in sums else row[key] * count / whole for count, row in rows) for key in rows[0][1]
        }


def _examples_of(entry: Any) -> list[Example]:
    return [entry] if isinstance(entry, Example) else sft_examples([entry], report=Report())
