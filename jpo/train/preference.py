"""PreferenceTrainer: JPO, DPO and their family. Between model and objective stands one scalar per sequence.

A step's pairs are cut into micro-batches by a token budget. A loss of single pairs is taken micro-batch by micro-batch;
one that couples the batch first gathers the log-likelihoods of all, then runs backward, recomputing forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jpo.data.batches import GroupedOrder, micro_batches
from jpo.data.cache import CachedRecords, Recipe
from jpo.data.encoding import Encoded, EncodedPair, iopo_groups, side_by_side
from jpo.data.forest import Forest, build_forest
from jpo.data.records import Judged, Pair
from jpo.data.report import Report
from jpo.data.texts import Text
from jpo.errors import JpoError
from jpo.model import LanguageModel
from jpo.objectives import LOSSES, PreferenceLoss, lengths_read, preference_loss
from jpo.parallel.shards import Shard
from jpo.train.common import warmup_steps
from jpo.train.config import DEFAULT_STEPS, PreferenceConfig
from jpo.train.embeddings import Embed, Embeddings
from jpo.train.micro import Evaluation, Found, Part, Slots, coefficients_of, in_order, joined_results, sides_of
from jpo.train.pairs import check_kinds, check_records, read_pairs
from jpo.train.reference import ReferenceLogps, fill, fill_file, sequence_digest
from jpo.train.trainer import AnyOrder, Trainer


class PreferenceTrainer(Trainer[PreferenceConfig, EncodedPair]):
    """Aligns `lm` on preference pairs (arXiv 2404.00530).

    pairs: path(s), records, or an iterable of mappings; for the loss kto also {prompt, completion, label}. eval_pairs:
    the same, or a mapping of names to such sets. embed: for the loss rpo, a function that gives instructions their
    vectors (config.rpo_embeddings names a file or a function instead; default: the reference model's mean hidden
    states). compute_metrics: a function of an Evaluation that returns further metrics of each evaluation set by name;
    they get the prefix eval_ and can be followed like the others. An adapter that the model carries is trained,
    otherwise one is added. Constructing a trainer writes nothing."""

    unit = "pairs"

    def __init__(
        self,
        lm: LanguageModel,
        pairs: Any,
        config: PreferenceConfig | None = None,
        eval_pairs: Any = None,
        *,
        embed: Embed | None = None,
        compute_metrics: Callable[[Evaluation], Mapping[str, float]] | None = None,
    ):
        super().__init__(lm, config, PreferenceConfig)
        self.infos = [LOSSES[name] for name in self.config.losses]
        self.embeddings = self._embeddings(embed)
        self._texts: dict[bytes, Text] = {}  # prompt's tokens -> instruction, where embeddings are asked for
        self.pairs = self._held_records(pairs, eval_pairs)
        self._ensure_adapter()
        self.needs_reference = any(info.reference for info in self.infos)
        self.coupled = any(info.couples_batch for info in self.infos)
        self.compute_metrics = compute_metrics
        self._rewards: list[tuple[np.ndarray[Any, Any], ...]] = []  # of an evaluation, for compute_metrics
        self.grouped = any("groups" in info.reads for info in self.infos)
        self._groups = iopo_groups(self.pairs) if self.grouped else {}
        self._logps = ReferenceLogps()
        self._hidden: dict[bytes, np.ndarray[Any, Any]] = {}
        if self.config.use_weighting and self.coupled:
            raise JpoError(
                f"use_weighting: loss {self.config.loss} couples the batch; it goes with losses of single pairs"
            )

    def _embeddings(self, embed: Embed | None) -> Embeddings | None:
        source = embed if embed is not None else self.config.rpo_embeddings
        if source is not None and not any("rpo_weights" in info.reads for info in self.infos):
            raise JpoError(f"rpo_embeddings: loss {self.config.loss} would ignore them; they belong to rpo")
        return None if source is None else Embeddings(source)

    @property
    def records(self) -> Sequence[EncodedPair]:
        """The training pairs."""
        return self.pairs

    def _read(self, source: Any, report: Report) -> list[Pair | Judged]:
        return read_pairs(source, report)

    def _open(self, source: Any) -> Sequence[EncodedPair]:
        if self.embeddings is not None:
            raise JpoError(
                "rpo_embeddings: are looked up by the instructions' texts, which a cache of tokens does not hold; train "
                "without cache_dir, or without rpo_embeddings (the reference model's mean hidden states)"
            )
        return super()._open(source)

    def _cached(self, source: Any, recipe: Recipe) -> CachedRecords:
        found = super()._cached(source, recipe)
        facts = found.facts
        check_kinds(self.config, facts.first_judged, facts.first_tie, facts.ties, facts.given)
        return found

    def _encoded(self, given: Sequence[Pair | Judged]) -> list[EncodedPair]:
        check_records(self.config, given)
        encoded = self.encoder.pairs(given)
        if self.embeddings is not None:
            for pair in encoded:
                texts = given[pair.index]
                assert isinstance(texts, Pair) and pair.chosen is not None and pair.rejected is not None
                self._texts[pair.chosen.prompt.tobytes()] = texts.i_chosen
                self._texts[pair.rejected.prompt.tobytes()] = texts.i_reject
        return encoded

    # one batch of pairs

    def _part(self, pairs: Sequence[EncodedPair], members: list[int], place: int) -> Part:
        chosen = sum(pairs[i].chosen is not None for i in members)
        return Part(members, self._forest([pairs[i] for i in members]), chosen, place)

    def _parts(self, pairs: Sequence[EncodedPair], members: list[int], slot: int) -> list[Part]:
        """The micro-batches of a slot's pairs."""
        cut = micro_batches([pairs[i].sequences for i in members], self.config.token_budget)
        return [
            self._part(pairs, [members[i] for i in chunk], slot + self.team.slots * place)
            for place, chunk in enumerate(cut)
        ]

    def _sequences(self, pair: EncodedPair) -> Sequence[Encoded]:
        return pair.sequences

    def _forest(self, pairs: Sequence[EncodedPair]) -> Forest:
        """Sequences: all chosen, then all rejected."""
        c = self.config  # stored references must mean the same rows whatever stands beside a pair
        keep_all = c.full_logps or c.use_weighting or c.precompute_ref_log_probs or c.ref_logps is not None
        skip = all(info.of_d_alone for info in self.infos) and not keep_all
        n = len(pairs)
        sequences = [(s.prompt, s.response) for s in side_by_side(pairs)]
        return build_forest(sequences, self.config.scope, [(i, i + n) for i in range(n)] if skip else None)

    def _digests(self, pairs: Sequence[EncodedPair]) -> list[bytes]:
        return [sequence_digest(self.config.scope, s.prompt, s.response) for s in side_by_side(pairs)]

    def _reference(self, part: Part, pairs: Sequence[EncodedPair]) -> np.ndarray[Any, Any]:
        known = self._logps.get(self._digests(pairs)) if len(self._logps) else None
        if known is not None:
            return known
        return part.forest.sequence_sums(self.lm.forward(part.forest, adapter=False).logps)

    def precompute(self, shard: Shard | None = None) -> int:
        """The reference's log-likelihoods of every pair (precompute_ref_log_probs), out of the file ref_logps where it
        holds them; what it lacked is computed and written there: of a shard, its run of micro-batches, into the shard's
        own file. How many pairs the file lacked."""
        ranks, path = self.team.ranks, self.config.ref_logps
        if path is not None and self.team.root:
            self._logps = ReferenceLogps(path, self._reference_model())
        if ranks.size > 1:
            self._logps.merge(ranks.bcast(self._logps.values()))
        pairs = [*self.pairs, *(pair for found in self.eval_sets.values() for pair in found)]
        lacking = [pair for pair in pairs if not all(digest in self._logps for digest in self._digests([pair]))]
        cut = micro_batches([pair.sequences for pair in lacking], 2 * self.config.token_budget)
        batches = [[lacking[i] for i in members] for members in cut]
        if shard is None:
            fill(self._logps, batches, self._reference_of, ranks)
            return len(lacking)
        assert path is not None
        mine = batches[slice(*shard.range(len(batches)))]
        fill_file(shard.path(path), self._logps.model, mine, self._digests, self._reference_of)
        return sum(map(len, mine))

    def know_reference(self, path: str) -> None:
        """Take the reference's log-likelihoods out of a file that precompute has left for some trainer."""
        self._logps.merge(ReferenceLogps(path, self._reference_model()).values())

    def _reference_model(self) -> str:
        from jpo.evaluate.sampling import weights_digest

        with self.lm.disable_adapter():
            return weights_digest(self.lm, whole=True)

    def _reference_of(self, pairs: Sequence[EncodedPair]) -> tuple[list[bytes], np.ndarray[Any, Any]]:
        forest = self._forest(pairs)
        return self._digests(pairs), forest.sequence_sums(self.lm.forward(forest, adapter=False).logps)

    def _loss(self, pairs: Sequence[EncodedPair], parts: Sequence[Part], weights: Any = None) -> PreferenceLoss:
        """The objective over the pairs of some micro-batches, in their order."""
        c, reads = self.config, frozenset().union(*(info.reads for info in self.infos))
        policy = sides_of(parts, [part.policy for part in parts])
        lengths = sides_of(parts, [part.forest.lengths for part in parts])
        extra: dict[str, Any] = {"loss": c.losses if len(c.losses) > 1 or c.weights else c.losses[0], "beta": c.beta}
        if c.weights:
            extra["loss_weights"] = c.weights
        for name in ("label_smoothing", "gamma", "orpo_lambda", "discopop_tau"):
            if name in reads:
                extra[name] = getattr(c, name)
        if "length_normalize" in reads and c.length_normalize is not None:
            extra["length_normalize"] = c.length_normalize
        for name in lengths_read(self.infos, c.length_normalize):
            extra[name] = lengths[name == "rejected_lengths"]
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
        if any(pair.tie for pair in pairs):
            extra["ties"] = np.array([pair.tie for pair in pairs])
        if "ties" in reads and c.nu is not None:
            extra["nu"] = c.nu
        if self.needs_reference:
            reference = sides_of(parts, [part.reference for part in parts])
            extra |= {"ref_chosen": reference[0], "ref_rejected": reference[1]}
        return preference_loss(*policy, **extra)

    def _mismatched(self, pairs: Sequence[EncodedPair]) -> np.ndarray[Any, Any]:
        """s of every prompt of the step joined to the response before it (kto's reference point): TRL's set, the step's
        own completions, each used once. Pairs stand as TRL unpairs them, the chosen before the rejected; the order is
        that of the data. Scored without backward."""
        ordered = sorted(pairs, key=lambda pair: pair.index)
        whole = [pair for pair in ordered if len(pair.sequences) == 2]
        single = [pair.sequences[0] for pair in ordered if len(pair.sequences) == 1]
        examples = [*side_by_side(whole), *single]
        mixed = [(example.prompt, examples[i - 1].response) for i, example in enumerate(examples)]
        scope = self.config.scope
        return self.team.mapped(  # type: ignore[no-any-return]
            mixed,
            lambda some: (
                self.lm.sequence_logps_ids(some, scope=scope)
                - self.lm.sequence_logps_ids(some, scope=scope, adapter=False)
            ),
        )

    def _rpo_weights(self, pairs: Sequence[EncodedPair]) -> np.ndarray[Any, Any]:
        """Row softmax of -(1 - cos(prompt_i, prompt_j)) / tau: chosen prompts by rejected prompts."""
        prompts = [sequence.prompt for sequence in side_by_side(pairs)]
        vectors = self._unit_vectors(prompts)
        w, rejected = vectors[: len(pairs)], vectors[len(pairs) :]
        z = (w @ rejected.T - 1) / self.config.rpo_tau
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    def _unit_vectors(self, prompts: Sequence[Any]) -> np.ndarray[Any, Any]:
        """(N, E) float64: the given embeddings of N prompts, or the reference model's mean hidden states."""
        if self.embeddings is not None:
            return self.embeddings.unit_vectors([self._texts[ids.tobytes()] for ids in prompts])
        new = list({ids.tobytes(): ids for ids in prompts if ids.tobytes() not in self._hidden}.values())
        if new:
            vectors = self.team.mapped(new, lambda some: np.stack([self._unit_vector(ids) for ids in some]))
            self._hidden.update(zip((ids.tobytes() for ids in new), vectors, strict=True))
        return np.stack([self._hidden[ids.tobytes()] for ids in prompts])

    def _unit_vector(self, ids: Any) -> np.ndarray[Any, Any]:
        vector = self.lm.mean_hidden([ids])[0].astype(np.float64)
        return np.asarray(vector / np.linalg.norm(vector))

    def _order(self) -> AnyOrder:
        """Random order; a loss over groups of pairs keeps each group in one step."""
        if not self.grouped:
            return super()._order()
        groups: dict[int, list[int]] = {}
        for place, pair in enumerate(self.pairs):
            groups.setdefault(self._groups[pair.index], []).append(place)
        return GroupedOrder(list(groups.values()), self.config.batch_size, self.config.seed)

    # a step

    def _run(self, pairs: Sequence[EncodedPair], step: int, train: bool) -> dict[str, float]:
        """Over ranks: each computes its slots' pairs, and all are given the metrics of the whole."""
        self.team.tree.begin()
        dealt = self.team.deal([pair.sequences for pair in pairs])
        parts = {slot: self._parts(pairs, dealt[slot], slot) for slot in self.team.own}
        found = self._coupled(pairs, parts, step, train) if self.coupled else self._streamed(pairs, parts, step, train)
        if found is not None and not train and self.compute_metrics is not None:
            places = [i for part in found[0] for i in part.members] if self.coupled else range(len(pairs))
            self._rewards.append(in_order(places, found[1]))
        metrics: dict[str, float] = self.team.ranks.bcast(None if found is None else self._metrics(pairs, *found))
        return metrics

    def _forward(self, part: Part, step: int, keep: bool, train: bool) -> None:
        """Dropout is a pure function of (seed, step, the sequence's tokens), so a recomputed pass meets the same
        masks."""
        seed = self.config.dropout_seed(step) if train else None
        part.scores = self.lm.forward(part.forest, keep=keep, stats=True, dropout_seed=seed)
        part.policy = part.forest.sequence_sums(part.scores.logps)

    def _streamed(self, pairs: Sequence[EncodedPair], parts: Slots, step: int, train: bool) -> Found | None:
        results = []
        for slot, own in parts.items():
            results += [(part, self._single(pairs, part, step, train)) for part in own]
            self._close(slot, train)
        if self.team.ranks.size > 1:
            results = [(part.measured(), result) for part, result in results]
        found = self.team.ranks.gather(results)
        if found is None:
            return None
        whole = [row for rows in found for row in rows]
        every = [part for part, _ in whole]
        return every, joined_results([result for _, result in whole], [part.members for part in every])

    def _single(self, pairs: Sequence[EncodedPair], part: Part, step: int, train: bool) -> PreferenceLoss:
        """One micro-batch under a loss of single pairs, forward and backward."""
        chunk = [pairs[i] for i in part.members]
        part.reference = self._reference(part, chunk) if self.needs_reference else None
        self._forward(part, step, train, train)
        weights = self._confidence(part) if self.config.use_weighting else None
        result = self._loss(chunk, [part], weights)
        if train:
            share = len(chunk) / len(pairs)
            c = np.concatenate([result.grad_chosen, result.grad_rejected]) * share
            self.lm.backward(part.forest.entry_coefficients(c))
        return result

    def _close(self, slot: int, train: bool) -> None:
        if train:
            assert self.lm.trainable is not None
            self.team.close(slot, self.lm.trainable.grads)

    def _coupled(self, pairs: Sequence[EncodedPair], parts: Slots, step: int, train: bool) -> Found:
        own = [part for those in parts.values() for part in those]
        for part in own:
            chunk = [pairs[i] for i in part.members]
            part.reference = self._reference(part, chunk) if self.needs_reference else None
        # passes of kto's reference point and rpo's similarities would overwrite what a kept pass left
        kept = train and len(own) == 1 and not any({"kl", "rpo_weights"} & info.reads for info in self.infos)
        for part in own:
            self._forward(part, step, kept, train)
        every = own
        if self.team.ranks.size > 1:
            found = self.team.ranks.allgather([part.measured() for part in own])
            every = [part for those in found for part in those]
        result = self._loss([pairs[i] for part in every for i in part.members], every)
        coefficients = coefficients_of(every, result)
        for slot, those in parts.items():
            for part in those if train else ():
                if not kept:
                    self._forward(part, step, keep=True, train=True)
                self.lm.backward(part.forest.entry_coefficients(coefficients[part.place]))
            self._close(slot, train)
        return every, result

    def _confidence(self, part: Part) -> np.ndarray[Any, Any]:
        """WPO: exp of the mean over scored tokens of log p_t - log sum_v p_v^2, of both sides, detached."""
        assert part.scores is not None and part.scores.log_p2 is not None
        mean = part.forest.sequence_sums(part.scores.logps - part.scores.log_p2) / part.forest.lengths
        return np.exp(mean[: part.chosen] + mean[part.chosen :])

    def _metrics(self, pairs: Sequence[EncodedPair], parts: list[Part], result: PreferenceLoss) -> dict[str, float]:
        """What a step's line says. Of examples without a second response (kto): accuracies is the share whose reward
        has their label's sign, margins the difference of the sides' means, where the mean of no example is 0, the
        reference's own; a side without an example has no line of its own. Ties count in no accuracy. Means over tokens
        count each sequence's scored ones, mean_token_accuracy those of the chosen alone, as TRL's do."""
        policy = sides_of(parts, [part.policy for part in parts])
        counts = [side.astype(float) for side in sides_of(parts, [np.diff(p.forest.sequence_start) for p in parts])]
        logits, entropy, hits = (
            [side.sum() for side in sides_of(parts, sums)]
            for sums in zip(*(part.token_sums() for part in parts), strict=True)
        )
        rewards = (result.rewards_chosen, result.rewards_rejected)
        sides: dict[str, float] = {}
        for place, side in enumerate(("chosen", "rejected")):
            if len(rewards[place]):
                sides[f"rewards/{side}"] = float(rewards[place].mean())
                sides[f"logps/{side}"] = float(policy[place].mean())
                sides[f"logits/{side}"] = float(logits[place] / max(1.0, counts[place].sum()))
        if all(len(pair.sequences) == 2 for pair in pairs):
            decided = result.accuracies[[not pair.tie for pair in pairs]]  # losses of ties keep the pairs' own order
            sides["rewards/accuracies"] = float(decided.mean()) if len(decided) else 0.0
            sides["rewards/margins"] = float(result.margins.mean())
        else:
            sides["rewards/accuracies"] = float(np.concatenate([rewards[0] > 0, rewards[1] < 0]).mean())
            sides["rewards/margins"] = sides.get("rewards/chosen", 0.0) - sides.get("rewards/rejected", 0.0)
        return (
            {"loss": result.loss}
            | sides
            | {
                "entropy": float(sum(entropy) / max(1.0, sum(map(np.sum, counts)))),
                "mean_token_accuracy": float(hits[0] / max(1.0, counts[0].sum())),
                "num_tokens": float(sum(pair.tokens for pair in pairs)),
                "rows_computed": float(sum(part.forest.rows for part in parts)),
                "unscored_shared_tokens": float(
                    sum(part.forest.lengths.sum() for part in parts) - sum(map(np.sum, counts))
                ),
            }
        )

    # the public interface

    def seconds(self, indices: Sequence[int]) -> float:
        """Seconds of a step over these pairs, by computing one pair of middle length; changes nothing."""
        seconds = super().seconds(indices)
        self._hidden.clear()  # ranks know the same prompts
        return seconds

    def _default_steps(self, per_epoch: int) -> int:
        return min(per_epoch, DEFAULT_STEPS)

    def _warmup(self, total: int) -> int:
        return warmup_steps(self.config, total)

    def _prepare(self) -> None:
        if self.needs_reference and (self.config.precompute_ref_log_probs or self.config.ref_logps is not None):
            self.precompute()

    def evaluate(self, pairs: Any = None) -> dict[str, float]:
        """Metrics on `pairs` (default: each evaluation set) with the prefix eval_ (eval_NAME_ for named sets)."""
        return self._evaluated(pairs)

    def _measured(self, name: str, chosen: Sequence[EncodedPair]) -> dict[str, float]:
        self._rewards = []
        return self._mean(chosen) | self._computed(name)

    def _computed(self, name: str) -> dict[str, float]:
        """What compute_metrics says of the set that was evaluated last; the first rank asks it."""
        if self.compute_metrics is None:
            return {}
        found = None
        if self.team.root:
            sides = [np.concatenate(side) for side in zip(*self._rewards, strict=True)]
            found = {key: float(value) for key, value in self.compute_metrics(Evaluation(name, *sides)).items()}
        computed: dict[str, float] = self.team.ranks.bcast(found)
        return computed

    def _mean(self, chosen: Sequence[EncodedPair]) -> dict[str, float]:
        """Metrics without training, averaged over pairs."""
        rows = []
        for start in range(0, len(chosen), self.config.batch_size):
            part = chosen[start : start + self.config.batch_size]
            rows.append((len(part), self._run(part, 0, train=False)))
        names = dict.fromkeys(key for _, row in rows for key in row)
        with_key = {key: [(count, row[key]) for count, row in rows if key in row] for key in names}
        return {
            key: sum(count * value for count, value in found) / sum(count for count, _ in found)
            for key, found in with_key.items()
        }

    def loss_and_gradients(self, pairs: Any) -> tuple[dict[str, float], dict[str, np.ndarray[Any, Any]]]:
        """(metrics, gradients by PEFT's tensor names) of one batch; no update; the reference is the adapter off."""
        assert self.lm.trainable is not None
        self.lm.trainable.grads[:] = 0
        metrics = self._run(self._encode(pairs), 0, train=True)
        gradients = self.lm.trainable.gradients()
        self.lm.trainable.grads[:] = 0
        return metrics, gradients
