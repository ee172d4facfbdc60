"""SFTTrainer: the mean negative log-likelihood of response tokens, packed (a forest of roots and their responses)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jpo.data.batches import micro_batches
from jpo.data.encoding import Encoded
from jpo.data.forest import Forest, build_forest
from jpo.data.readers import read_records
from jpo.data.records import Example, sft_examples
from jpo.data.report import Report
from jpo.model import LanguageModel
from jpo.train.config import DEFAULT_EPOCHS, SFTConfig
from jpo.train.trainer import Trainer

_AT_ONCE = 1 << 14  # examples of an evaluation set that are looked at together


class SFTTrainer(Trainer[SFTConfig, Encoded]):
    """Fine-tunes `lm` on {instruction, response} examples: an adapter, or every weight with config.full.

    examples: path(s), records or an iterable of mappings; eval_examples: the same, or a mapping of names to such sets.
    Constructing a trainer writes nothing."""

    unit = "examples"

    def __init__(self, lm: LanguageModel, examples: Any, config: SFTConfig | None = None, eval_examples: Any = None):
        super().__init__(lm, config, SFTConfig)
        self.examples = self._held_records(examples, eval_examples)
        if self.config.full:
            lm.enable_full()
        else:
            self._ensure_adapter()

    @property
    def records(self) -> Sequence[Encoded]:
        """The training examples."""
        return self.examples

    def _read(self, source: Any, report: Report) -> list[Example]:
        if isinstance(source, (list, tuple)) and source and all(isinstance(entry, Example) for entry in source):
            return list(source)
        return sft_examples(read_records(source), report=report)

    def _encoded(self, given: Sequence[Example]) -> list[Encoded]:
        return self.encoder.examples(given)

    def _sequences(self, example: Encoded) -> Sequence[Encoded]:
        return (example,)

    def _forest(self, examples: Sequence[Encoded]) -> Forest:
        return build_forest([(example.prompt, example.response) for example in examples], "response")

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
        forest = self._forest(chunk)
        scores = self.lm.forward(forest, keep=seed is not None, stats=True, dropout_seed=seed)
        assert scores.entropy is not None and scores.hit is not None
        if seed is not None:
            self.lm.backward(forest.entry_coefficients(np.full(len(chunk), -1.0 / tokens)))
        sums = float(forest.sequence_sums(scores.logps).sum()), float(scores.entropy.sum()), float(scores.hit.sum())
        return *sums, forest.rows, len(scores.hit)

    def _default_steps(self, per_epoch: int) -> int:
        return DEFAULT_EPOCHS * per_epoch

    def _warmup(self, total: int) -> int:
        asked = self.config.warmup_steps
        return asked if asked is not None else round(self.config.warmup_ratio * total)

    def evaluate(self, examples: Any = None) -> dict[str, float]:
        """Metrics on `examples` (default: each evaluation set) with the prefix eval_ (eval_NAME_ for named sets)."""
        return self._evaluated(examples)

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
