"""PreferenceTrainer: JPO, DPO and their family. Between model and objective stands one scalar per sequence.

A step's pairs are cut into micro-batches by a token budget. A loss of single pairs is taken micro-batch by micro-batch;
one that couples the batch first gathers the log-likelihoods of all, then runs backward, recomputing forward.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jpo.data.batches import GroupedOrder, Order, micro_batches
from jpo.data.encoding import EncodedPair, Encoder
from jpo.data.forest import Forest, build_forest
from jpo.data.readers import read_records
from jpo.data.records import Pair, preference_pairs
from jpo.data.report import Report
from jpo.data.templates import Template
from jpo.errors import JpoError
from jpo.memory import free_bytes
from jpo.model import LanguageModel, Scores
from jpo.objectives import LOSSES, PreferenceLoss, preference_loss
from jpo.profiling import compute_costs
from jpo.train import memory
from jpo.train.callbacks import Callbacks
from jpo.train.config import DEFAULT_STEPS, DEFAULT_WARMUP, PreferenceConfig, TrainingConfig
from jpo.train.loop import Loop, fingerprint

SETTINGS_VERSION = 2  # of jpo_config.json; in those without one, training.template "paper" is what "spaced" is now
C = TypeVar("C", bound=TrainingConfig)


def adapter_settings(config: TrainingConfig, template: Template, lm: LanguageModel) -> dict[str, Any]:
    """What stands in jpo_config.json beside the adapter: sampling and evaluation read it."""
    own = {
        "version": SETTINGS_VERSION,
        "template": template.to_dict(),
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
    }
    training = config.to_dict() | {"template": template.name}
    return own | {"truncation": config.truncation, "compute": lm.compute, "training": training}


def ensure_adapter(lm: LanguageModel, config: TrainingConfig) -> None:
    """The adapter that the model carries, or a fresh one by the config."""
    if lm.trainable is None:
        lm.add_lora(
            config.r, config.lora_alpha, config.lora_dropout, config.targets, config.use_rslora, seed=config.seed
        )


def settled(lm: LanguageModel, config: C) -> C:
    """The config with what the model brings in it, so that checkpoints hold a run to it: its compute type and storage, and
    the shape of the adapter that it carries. JpoError where the config asks for another compute type or storage.
    The model's passes keep from now on what the config's gradient_checkpointing says."""
    brought: dict[str, Any] = {"compute": lm.compute, "storage": lm.storage}
    for name, value in brought.items():
        asked = getattr(config, name)
        if asked not in (None, value) and not (name == "compute" and asked == "auto"):
            raise JpoError(
                f"{name}: the config says {asked!r}, but the model was loaded with {value!r}; "
                f"use jpo.load(..., {name}={asked!r})"
            )
    if lm.lora is not None:
        brought |= lm.lora.options()
    lm.set_recompute(config.gradient_checkpointing)
    return dataclasses.replace(config, **brought)


def probe(
    lm: LanguageModel,
    forests: Sequence[Forest],
    total: int,
    per_epoch: int,
    step: Callable[[], Any],
    needed: memory.Estimate,
) -> dict[str, Any]:
    """What a dry run says of `total` steps: rows and memory of the first one's forests by the plan, times by running it."""
    assert lm.trainable is not None
    seconds, costs = compute_costs(lm, step)
    lm.trainable.grads[:] = 0
    return {
        "steps": total,
        "steps_per_epoch": per_epoch,
        "rows_first_step": sum(forest.rows for forest in forests),
        "buffers_gb": round(max(lm.pass_bytes(forest, True) for forest in forests) / 2**30, 4),
        "step_seconds": round(seconds, 4),
        "total_seconds": round(seconds * total, 1),
        "trained_values": int(lm.trainable.params.size),
        "memory_gb": {name: round(count / 2**30, 4) for name, count in needed.parts().items()},
        "free_gb": round(free_bytes() / 2**30, 2),
        "step_seconds_by_compute": costs,
    }


def total_steps(config: TrainingConfig, per_epoch: int, default: int) -> int:
    """Optimizer steps that the config asks for."""
    if config.steps is not None:
        return config.steps
    return default if config.epochs is None else max(1, round(config.epochs * per_epoch))


def warmup_steps(config: TrainingConfig, total: int) -> int:
    """Steps of warm-up: as asked for, otherwise at most a tenth of the run."""
    return config.warmup_steps if config.warmup_steps is not None else min(DEFAULT_WARMUP, total // 10)


def quickest(work: Callable[[], Any], times: int = 2) -> float:
    """Seconds of the quickest of several runs: the first one allocates."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def named_sets(given: Any) -> dict[str, Any]:
    """Evaluation data by name: a mapping as it is, other data as the set "", None as no set."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {"": given}


@dataclass
class _Part:
    """A micro-batch: its pairs (places in the step), its forest, and what forward passes gave."""

    members: list[int]
    forest: Forest
    reference: np.ndarray[Any, Any] | None = None  # (2 n,) chosen then rejected
    scores: Scores | None = None
    policy: np.ndarray[Any, Any] | None = None


class PreferenceTrainer:
    """Aligns `lm` on preference pairs (arXiv 2404.00530).

    pairs: path(s), records, or an iterable of mappings; eval_pairs: the same, or a mapping of names to such sets. An
    adapter that the model carries is trained, otherwise one is added. Constructing a trainer writes nothing."""

    unit = "pairs"

    def __init__(self, lm: LanguageModel, pairs: Any, config: PreferenceConfig | None = None, eval_pairs: Any = None):
        self.lm, self.config = lm, settled(lm, config or PreferenceConfig())
        self.report = Report()
        given = self._read(pairs)
        conversational = any(pair.conversational for pair in given)
        self.template = Template.named(self.config.template, lm.tokenizer, conversational)
        limit = int(lm.config["max_position_embeddings"])
        self.encoder = Encoder(
            lm.tokenizer,
            self.template,
            min(self.config.max_length, limit),
            min(self.config.max_prompt_length, limit - 1, self.config.max_length - 1),
            self.config.truncation,
        )
        self.pairs = self.encoder.pairs(given)
        self.shown = self.encoder.example(
            given[0].i_chosen, given[0].r_chosen
        )  # what is trained, to print before a run
        self.told = self.report.then(self.encoder.report())  # what became of the training records
        self.eval_sets = {name: self._encode(data) for name, data in named_sets(eval_pairs).items()}
        self.memory = memory.check(lm, self.config, [pair.tokens for pair in self.pairs])
        ensure_adapter(lm, self.config)
        self.infos = [LOSSES[name] for name in self.config.losses]
        self.needs_reference = any(info.reference for info in self.infos)
        self.coupled = any(info.couples_batch for info in self.infos)
        self._groups = self._iopo_groups(self.pairs)
        self._cache: dict[int, tuple[float, float]] = {}
        self._hidden: dict[bytes, np.ndarray[Any, Any]] = {}
        if self.config.use_weighting and self.coupled:
            raise JpoError(
                f"use_weighting: loss {self.config.loss} couples the batch; it goes with losses of single pairs"
            )

    def _encode(self, pairs: Any) -> list[EncodedPair]:
        return self.encoder.pairs(self._read(pairs))

    def _read(self, pairs: Any) -> list[Pair]:
        given = pairs if isinstance(pairs, Sequence) and not isinstance(pairs, str) else ()
        if any(isinstance(pair, Pair) for pair in given) and not all(isinstance(pair, Pair) for pair in given):
            pairs = [pair.to_record() if isinstance(pair, Pair) else pair for pair in given]  # as a union of sources is
        if isinstance(pairs, (str, os.PathLike)) or not (
            pairs and isinstance(pairs, Sequence) and isinstance(pairs[0], Pair)
        ):
            return preference_pairs(read_records(pairs), report=self.report)
        return list(pairs)

    # one batch of pairs

    def _forest(self, pairs: Sequence[EncodedPair]) -> Forest:
        """Sequences: all chosen, then all rejected."""
        sequences = [(p.chosen.prompt, p.chosen.response) for p in pairs] + [
            (p.rejected.prompt, p.rejected.response) for p in pairs
        ]
        c = self.config  # cached references must mean the same rows whatever stands beside a pair
        keep_all = c.full_logps or c.use_weighting or c.precompute_ref_log_probs
        skip = all(info.of_d_alone for info in self.infos) and not keep_all
        n = len(pairs)
        return build_forest(sequences, self.config.scope, [(i, i + n) for i in range(n)] if skip else None)

    def _reference(self, part: _Part, pairs: Sequence[EncodedPair]) -> np.ndarray[Any, Any]:
        if all(pair.index in self._cache for pair in pairs) and self._cache:
            rows = np.array([self._cache[pair.index] for pair in pairs])
            return rows.T.ravel()
        return part.forest.sequence_sums(self.lm.forward(part.forest, adapter=False).logps)

    def precompute(self) -> None:
        """Cache the reference log-likelihoods of every training pair (precompute_ref_log_probs)."""
        for members in micro_batches([pair.sequences for pair in self.pairs], 2 * self.config.token_budget):
            chunk = [self.pairs[i] for i in members]
            forest = self._forest(chunk)
            sums = forest.sequence_sums(self.lm.forward(forest, adapter=False).logps)
            for place, pair in enumerate(chunk):
                self._cache[pair.index] = (float(sums[place]), float(sums[place + len(chunk)]))

    def _loss(
        self, pairs: Sequence[EncodedPair], policy: Any, ref: Any, weights: Any = None, forests: Any = None
    ) -> PreferenceLoss:
        """The objective over n pairs: policy and ref are (2 n,), chosen then rejected."""
        c, n = self.config, len(pairs)
        reads = frozenset().union(*(info.reads for info in self.infos))
        lengths = np.concatenate([part.lengths.reshape(2, -1) for part in forests], axis=1)
        extra: dict[str, Any] = {"loss": c.losses if len(c.losses) > 1 or c.weights else c.losses[0], "beta": c.beta}
        if c.weights:
            extra["loss_weights"] = c.weights
        for name in ("label_smoothing", "gamma", "orpo_lambda", "discopop_tau"):
            if name in reads:
                extra[name] = getattr(c, name)
        if "length_normalize" in reads and c.length_normalize is not None:
            extra["length_normalize"] = c.length_normalize
        normalized = any(
            "length_normalize" not in i.reads or c.length_normalize is not False
            for i in self.infos
            if "chosen_lengths" in i.reads
        )
        if "chosen_lengths" in reads and normalized:
            extra["chosen_lengths"] = lengths[0]
        if "rejected_lengths" in reads and normalized:
            extra["rejected_lengths"] = lengths[1]
        if c.f_divergence_type != "reverse_kl":
            extra["f_divergence_type"] = c.f_divergence_type
            if c.f_divergence_type == "alpha_divergence":
                extra["f_alpha_divergence_coef"] = c.f_alpha_divergence_coef
        if "kl" in reads:
            extra |= {
                "kl": self._mismatched(pairs),
                "desirable_weight": c.desirable_weight,
                "undesirable_weight": c.undesirable_weight,
            }
        if "rpo_weights" in reads:
            extra["rpo_weights"] = self._rpo_weights(pairs)
        if "groups" in reads:
            extra["groups"] = np.array([self._groups.get(pair.index, -1 - pair.index) for pair in pairs])
        if weights is not None:
            extra["pair_weights"] = weights
        if self.needs_reference:
            extra |= {"ref_chosen": ref[:n], "ref_rejected": ref[n:]}
        return preference_loss(policy[:n], policy[n:], **extra)

    def _mismatched(self, pairs: Sequence[EncodedPair]) -> np.ndarray[Any, Any]:
        """s of prompts joined to the next pair's chosen response (kto's reference point): scored without backward."""
        mixed = [(pairs[i].chosen.prompt, pairs[(i + 1) % len(pairs)].chosen.response) for i in range(len(pairs))]
        return self.lm.sequence_logps_ids(mixed, scope=self.config.scope) - self.lm.sequence_logps_ids(
            mixed, scope=self.config.scope, adapter=False
        )

    def _rpo_weights(self, pairs: Sequence[EncodedPair]) -> np.ndarray[Any, Any]:
        """Row softmax of -(1 - cos(prompt_i, prompt_j)) / tau: chosen prompts by rejected prompts."""
        for pair in pairs:
            for ids in (pair.chosen.prompt, pair.rejected.prompt):
                if ids.tobytes() not in self._hidden:
                    vector = self.lm.mean_hidden([ids])[0].astype(np.float64)
                    self._hidden[ids.tobytes()] = vector / np.linalg.norm(vector)
        w = np.stack([self._hidden[pair.chosen.prompt.tobytes()] for pair in pairs])
        rejected = np.stack([self._hidden[pair.rejected.prompt.tobytes()] for pair in pairs])
        z = (w @ rejected.T - 1) / self.config.rpo_tau
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    def _iopo_groups(self, pairs: Sequence[EncodedPair]) -> dict[int, int]:
        """Pairs whose instructions are each other's, swapped, belong together; the others stand alone."""
        waiting: dict[tuple[bytes, bytes], list[int]] = {}
        groups: dict[int, int] = {}
        for pair in pairs:
            w, l = pair.chosen.prompt.tobytes(), pair.rejected.prompt.tobytes()
            if waiting.get((l, w)):
                groups[pair.index] = waiting[l, w].pop()
            else:
                waiting.setdefault((w, l), []).append(pair.index)
                groups[pair.index] = pair.index
        return groups

    def _order(self) -> Order | GroupedOrder:
        """Random order; a loss over groups of pairs keeps each group in one step."""
        if not any("groups" in info.reads for info in self.infos):
            return Order(len(self.pairs), self.config.batch_size, self.config.seed)
        groups: dict[int, list[int]] = {}
        for place, pair in enumerate(self.pairs):
            groups.setdefault(self._groups[pair.index], []).append(place)
        return GroupedOrder(list(groups.values()), self.config.batch_size, self.config.seed)

    # a step

    def step(self, indices: Sequence[int], step: int) -> dict[str, float]:
        """Add the gradients of these pairs' mean loss into lm.trainable.grads; the step's metrics."""
        return self._run([self.pairs[i] for i in indices], step, train=True)

    def _run(self, pairs: list[EncodedPair], step: int, train: bool) -> dict[str, float]:
        cut = micro_batches([pair.sequences for pair in pairs], self.config.token_budget)
        parts = [_Part(members, self._forest([pairs[i] for i in members])) for members in cut]
        gathered = (
            self._coupled(pairs, parts, step, train) if self.coupled else self._streamed(pairs, parts, step, train)
        )
        return self._metrics(pairs, parts, gathered)

    def _forward(self, part: _Part, step: int, place: int, keep: bool, train: bool) -> None:
        """dropout is a pure function of (seed, step, micro-batch), so a recomputed pass meets the same masks."""
        seed = (self.config.seed * 1_000_003 + step) * 4099 + place
        part.scores = self.lm.forward(part.forest, keep=keep, stats=True, dropout_seed=seed if train else None)
        part.policy = part.forest.sequence_sums(part.scores.logps)

    def _streamed(self, pairs: list[EncodedPair], parts: list[_Part], step: int, train: bool) -> PreferenceLoss:
        results = []
        for place, part in enumerate(parts):
            chunk = [pairs[i] for i in part.members]
            part.reference = self._reference(part, chunk) if self.needs_reference else None
            self._forward(part, step, place, train, train)
            weights = self._confidence(part) if self.config.use_weighting else None
            result = self._loss(chunk, part.policy, part.reference, weights, [part.forest])
            results.append(result)
            if train:
                share = len(chunk) / len(pairs)
                c = np.concatenate([result.grad_chosen, result.grad_rejected]) * share
                self.lm.backward(part.forest.entry_coefficients(c))
        return _joined(results, [part.members for part in parts])

    def _coupled(self, pairs: list[EncodedPair], parts: list[_Part], step: int, train: bool) -> PreferenceLoss:
        for part in parts:
            chunk = [pairs[i] for i in part.members]
            part.reference = self._reference(part, chunk) if self.needs_reference else None
        order = [i for part in parts for i in part.members]
        ordered = [pairs[i] for i in order]
        # passes of kto's reference point and rpo's similarities would overwrite what a kept pass left
        single = len(parts) == 1 and not any({"kl", "rpo_weights"} & info.reads for info in self.infos)
        for place, part in enumerate(parts):
            self._forward(part, step, place, keep=train and single, train=train)
        policy = _sides(part.policy for part in parts)
        reference = _sides(part.reference for part in parts) if self.needs_reference else None
        result = self._loss(ordered, policy, reference, None, [part.forest for part in parts])
        start = 0
        for place, part in enumerate(parts):
            stop = start + len(part.members)
            if train:
                if not single:
                    self._forward(part, step, place, keep=True, train=True)
                c = np.concatenate([result.grad_chosen[start:stop], result.grad_rejected[start:stop]])
                self.lm.backward(part.forest.entry_coefficients(c))
            start = stop
        return result

    def _confidence(self, part: _Part) -> np.ndarray[Any, Any]:
        """WPO: exp of the mean over scored tokens of log p_t - log sum_v p_v^2, of both sides, detached."""
        assert part.scores is not None and part.scores.log_p2 is not None
        mean = part.forest.sequence_sums(part.scores.logps - part.scores.log_p2) / part.forest.lengths
        n = len(part.members)
        return np.exp(mean[:n] + mean[n:])

    def _metrics(self, pairs: list[EncodedPair], parts: list[_Part], result: PreferenceLoss) -> dict[str, float]:
        n = len(pairs)
        policy = _sides(part.policy for part in parts)
        scores = [part.scores for part in parts if part.scores is not None]
        logits = _sides(part.forest.sequence_sums(part.scores.mean_logit) for part in parts if part.scores is not None)
        counts = _sides(np.diff(part.forest.sequence_start) for part in parts).astype(float)
        hits = np.concatenate([s.hit for s in scores if s.hit is not None])
        return {
            "loss": result.loss,
            "rewards/chosen": float(result.rewards_chosen.mean()),
            "rewards/rejected": float(result.rewards_rejected.mean()),
            "rewards/accuracies": float(result.accuracies.mean()),
            "rewards/margins": float(result.margins.mean()),
            "logps/chosen": float(policy[:n].mean()),
            "logps/rejected": float(policy[n:].mean()),
            "logits/chosen": float(logits[:n].sum() / max(1.0, counts[:n].sum())),
            "logits/rejected": float(logits[n:].sum() / max(1.0, counts[n:].sum())),
            "entropy": float(np.concatenate([s.entropy for s in scores if s.entropy is not None]).mean())
            if len(hits)
            else 0.0,
            "mean_token_accuracy": float(hits.mean()) if len(hits) else 0.0,
            "num_tokens": float(sum(pair.tokens for pair in pairs)),
            "rows_computed": float(sum(part.forest.rows for part in parts)),
            "unscored_shared_tokens": float(sum(part.forest.lengths.sum() for part in parts) - counts.sum()),
        }

    # the public interface

    @property
    def sizes(self) -> tuple[int, dict[str, int]]:
        """Pairs for training, and those of each evaluation set."""
        return len(self.pairs), {name: len(pairs) for name, pairs in self.eval_sets.items()}

    def seconds(self, indices: Sequence[int]) -> float:
        """Seconds of a step over these pairs, by computing one pair of middle length; changes nothing."""
        assert self.lm.trainable is not None
        chosen = sorted((self.pairs[i] for i in indices), key=lambda pair: pair.tokens)
        middle = chosen[len(chosen) // 2]
        seconds = quickest(lambda: self._run([middle], 0, train=True))
        self.lm.trainable.grads[:] = 0
        return seconds * sum(pair.tokens for pair in chosen) / middle.tokens

    def _total(self, order: Order | GroupedOrder) -> int:
        return total_steps(self.config, order.steps_per_epoch, min(order.steps_per_epoch, DEFAULT_STEPS))

    def train(self, resume: bool = False, callbacks: Callbacks | None = None) -> dict[str, list[Any]]:
        """Train; the history, a mapping of lists (a column of metrics.jsonl each).

        callbacks: jpo.train.Callback objects, or functions that are called with each row."""
        from jpo.train.progress import make_callbacks

        order = self._order()
        total = self._total(order)
        if self.config.precompute_ref_log_probs and self.needs_reference:
            self.precompute()
        mark = fingerprint(
            self.config, [ids for pair in self.pairs for s in pair.sequences for ids in (s.prompt, s.response)]
        )
        loop = Loop(self.lm, self, self.config, order, total, warmup_steps(self.config, total), mark)
        return loop.run(resume, make_callbacks(callbacks, self.config))

    def save(self, folder: str) -> None:
        """The adapter in PEFT's format, or the whole model where it is trained in full."""
        if self.lm.full:
            self.lm.merge(folder)
        else:
            self.lm.save_adapter(folder, adapter_settings(self.config, self.template, self.lm))

    def evaluate(self, pairs: Any = None) -> dict[str, float]:
        """Metrics on `pairs` (default: each evaluation set) with the prefix eval_ (eval_NAME_ for named sets)."""
        sets = self.eval_sets if pairs is None else {"": self._encode(pairs)}
        metrics: dict[str, float] = {}
        for name, chosen in sets.items():
            prefix = f"eval_{name}_" if name else "eval_"
            metrics |= {f"{prefix}{key}": value for key, value in self._mean(chosen).items()}
        return metrics

    def _mean(self, chosen: list[EncodedPair]) -> dict[str, float]:
        """Metrics without training, averaged over pairs."""
        rows = []
        cached, self._cache = self._cache, {}
        try:
            for start in range(0, len(chosen), self.config.batch_size):
                part = chosen[start : start + self.config.batch_size]
                rows.append((len(part), self._run(part, 0, train=False)))
        finally:
            self._cache = cached
        total = sum(count for count, _ in rows)
        return {key: sum(count * row[key] for count, row in rows) / total for key in rows[0][1]} if rows else {}

    def loss_and_gradients(self, pairs: Any) -> tuple[dict[str, float], dict[str, np.ndarray[Any, Any]]]:
        """(metrics, gradients by PEFT's tensor names) of one batch; no update; the reference is the adapter off."""
        assert self.lm.trainable is not None
        cached, self._cache = self._cache, {}
        self.lm.trainable.grads[:] = 0
        try:
            metrics = self._run(self._encode(pairs), 0, train=True)
        finally:
            self._cache = cached
        gradients = self.lm.trainable.gradients()
        self.lm.trainable.grads[:] = 0
        return metrics, gradients

    def dry_run(self) -> dict[str, Any]:
        """Tokens, memory and time that the run would take, by the plan and one probed micro-batch; writes nothing."""
        order = self._order()
        total = self._total(order)
        step = [self.pairs[i] for i in order.batch(0)]
        cut = micro_batches([pair.sequences for pair in step], self.config.token_budget)
        forests = [self._forest([step[i] for i in members]) for members in cut]
        tokens = sum(pair.tokens for pair in self.pairs)
        return {"pairs": len(self.pairs), "tokens_per_epoch": tokens} | probe(
            self.lm, forests, total, order.steps_per_epoch, lambda: self._run(step, 0, train=True), self.memory
        )


def _sides(parts: Any) -> np.ndarray[Any, Any]:
    """(2 n_k,) vectors, chosen then rejected each -> one (2 n,) vector, chosen then rejected."""
    return np.concatenate([np.asarray(part).reshape(2, -1) for part in parts], axis=1).ravel()


def _joined(results: list[PreferenceLoss], members: list[list[int]]) -> PreferenceLoss:
    """The micro-batches' results as one batch's, in the pairs' own order."""
    order = np.argsort(np.concatenate(members), kind="stable")
    joined = {name: np.concatenate([getattr(r, name) for r in results])[order] for name in _VECTORS}
    return PreferenceLoss(float(joined["losses"].mean()), **joined)


_VECTORS = ("losses", "rewards_chosen", "rewards_rejected", "margins", "accuracies", "grad_chosen", "grad_rejected")
