"""How many answers are needed, by the way the comparisons are chosen: `jpo pairs --select` on the embedded world, with
its exact judge.

`python -m tests.benchmarks.selection --policy demo/policy` (a study's policy: `jpo demo --output demo` makes one). A
seed is a pool of joint candidates over texts of the world's writers, and held-out pairs over other instructions. Each
round asks a batch, trains a new adapter on all answers so far (--refit head: fits the linear reward over the policy's
mean hidden states instead), and counts the held-out pairs, ties left out, that it orders as the judge does. Prints
means over the seeds with Student's intervals, and each strategy's difference from chance on the same seeds. --noise
replaces the exact judge by an annotator whose answers are drawn by the difference of qualities (Bradley-Terry).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json

import numpy as np

import jpo
from jpo.data.records import candidates
from jpo.evaluate.sampling import encoder_of
from jpo.evaluate.statistics import t_interval
from jpo.feedback import pairs as build
from jpo.feedback.rounds import Pool, choose, pool_of, score
from jpo.feedback.selection import STRATEGIES, ask_in_rounds, probability
from jpo.study import world

_INSTRUCTIONS, _TESTS = 11, 12  # streams of the world's texts
TRAINING = {"scope": "joint", "beta": 1.0, "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "epochs": 4,
            "batch_size": 16, "learning_rate": 0.0015, "warmup_steps": 5, "max_length": 64, "max_prompt_length": 32,
            "token_budget": 2048, "template": world.TEMPLATE}  # fmt: skip


def joint_pairs(count, seed, stream, without=()):
    """(joint candidates, their instructions): pairs of items of different instructions, two writers' texts to each."""
    texts = world.instructions(count, seed, stream, without)
    answers = [world.responses(texts, seed, stream * 10 + turn, world.CARELESS) for turn in range(2)]
    rows = [{"instruction": text, "response": each} for both in answers for text, each in zip(texts, both, strict=True)]
    return build.joint_candidates(build.items_of(rows), count, seed), texts


def feedback(pair, noise, rng):
    """0, 1 or 2 (equal): which of the two items the judge, or a noisy annotator, prefers."""
    items = (pair.instruction_0, pair.response_0), (pair.instruction_1, pair.response_1)
    if not noise:
        return {"A": 0, "B": 1, "tie": 2}[world.compare(*items)]
    first, second = (world.quality(*item) or 0.0 for item in items)
    return int(rng.random() >= probability((first - second) / noise))


class World:
    """A seed's pool, whose every answer stands already, and its held-out pairs."""

    def __init__(self, options, seed):
        self.options, self.seed = options, seed
        self.records, texts = joint_pairs(options.pool, seed, _INSTRUCTIONS)
        tests = candidates(joint_pairs(options.tests, seed, _TESTS, texts)[0])
        rng = np.random.default_rng(seed)
        for record, pair in zip(self.records, candidates(self.records), strict=True):
            record["answer"] = feedback(pair, options.noise, rng)
        decided = [(pair, feedback(pair, 0, None)) for pair in tests]
        self.tests = [pair for pair, answer in decided if answer != 2]
        self.wanted = np.array([answer == 0 for _, answer in decided if answer != 2])

    def by_head(self, lm, strategy):
        """Shares of held-out pairs in the judge's order after each round; refit: the linear reward."""
        pool = candidates(self.records)
        x = score(lm, Pool(asked=[*pool, *self.tests]), encoder_of(lm, None, world.TEMPLATE)).features
        answers = np.array([{0: 1.0, 1: 0.0, 2: 0.5}[record["answer"]] for record in self.records])
        options = {"turns": self.options.rounds, "seed": self.seed}
        found = ask_in_rounds(strategy, self.options.batch, x[: len(pool)], lambda at: answers[at], **options)
        return [float(np.mean((x[len(pool) :] @ w > 0) == self.wanted)) for _, w in found]

    def by_adapter(self, lm, strategy):
        """The same; refit: a new adapter, trained from the policy on all answers so far."""
        encoder, answered, adapter, shares = encoder_of(lm, None, world.TEMPLATE), [], None, []
        for _ in range(self.options.rounds):
            pool = pool_of(self.records, answered)
            scored = None if strategy == "random" else score(lm, pool, encoder, adapter)
            batch = choose(strategy, self.options.batch, pool, scored, self.seed).records
            answered += [{**record, "feedback": record["answer"]} for record in batch]
            lm.remove_adapter()
            config = jpo.PreferenceConfig(**TRAINING, seed=self.seed)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                jpo.PreferenceTrainer(lm, build.preferences_from_feedback(answered), config).train()
            adapter = {"training": TRAINING}
            margins = score(lm, Pool(asked=self.tests), encoder, adapter).margins
            shares.append(float(np.mean((margins > 0) == self.wanted)))
        lm.remove_adapter()
        return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=1200, help="candidates that can be asked")
    parser.add_argument("--tests", type=int, default=600, help="held-out pairs")
    parser.add_argument("--batch", type=int, default=60, help="comparisons of a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--refit", choices=("adapter", "head"), default="adapter")
    parser.add_argument("--noise", type=float, default=0.0, help="scale of the annotator's noise; 0: exact")
    parser.add_argument("--json", help="also write every seed's curve here")
    options = parser.parse_args()
    lm = jpo.load(options.policy)
    seeds = []
    for seed in range(options.seeds):
        asked = World(options, seed)
        ask = asked.by_head if options.refit == "head" else asked.by_adapter
        seeds.append({strategy: ask(lm, strategy) for strategy in STRATEGIES})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(seeds, file)
    print(f"| answers | {' | '.join(STRATEGIES)} | {' | '.join(f'{name} - random' for name in STRATEGIES[1:])} |")
    print("|---" * (2 * len(STRATEGIES)) + "|")
    for turn in range(options.rounds):
        shares = {name: np.array([found[name][turn] for found in seeds]) for name in STRATEGIES}
        cells = [_with_interval(shares[name]) for name in STRATEGIES]
        cells += [_with_interval(shares[name] - shares["random"]) for name in STRATEGIES[1:]]
        print(f"| {(turn + 1) * options.batch} | {' | '.join(cells)} |")
    means = {name: np.array([np.mean(found[name]) for found in seeds]) for name in STRATEGIES}
    cells = [_with_interval(means[name]) for name in STRATEGIES]
    cells += [_with_interval(means[name] - means["random"]) for name in STRATEGIES[1:]]
    print(f"| mean | {' | '.join(cells)} |")


def _with_interval(values):
    found = t_interval([float(value) for value in values])
    half = "" if found["high"] is None else f" ± {100 * (found['high'] - found['mean']):.1f}"
    return f"{100 * found['mean']:.1f}{half}"


if __name__ == "__main__":
    main()
