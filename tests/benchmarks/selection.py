"""How many answers a linear reward needs, by the way the comparisons are chosen: `jpo pairs --select` on the embedded
world, with its exact judge.

`python -m tests.benchmarks.selection --policy demo/policy` (a study's policy: `jpo demo --output demo` makes one). A
seed is a pool of joint candidates over texts of the world's writers, and held-out pairs over other instructions. Each
round asks a batch, fits the linear reward over the policy's mean hidden states to all answers so far, and counts the
held-out pairs, ties left out, that it orders as the judge does. Prints means over the seeds with Student's intervals,
and each strategy's difference from chance on the same seed. Simulated annotator: with --noise, answers are drawn by the
difference of qualities (Bradley-Terry) instead of being exact.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

import jpo
from jpo.data.records import candidates
from jpo.evaluate.sampling import encoder_of
from jpo.evaluate.statistics import t_interval
from jpo.feedback import pairs as build
from jpo.feedback.rounds import Pool, score
from jpo.feedback.selection import RIDGE, STRATEGIES, ask_in_rounds, probability
from jpo.study import world

_INSTRUCTIONS, _TESTS = 11, 12  # streams of the world's texts


def joint_pairs(count, seed, stream, without=()):
    """(candidates, their instructions): pairs of items of different instructions, two writers' texts to each."""
    texts = world.instructions(count, seed, stream, without)
    answers = [world.responses(texts, seed, stream * 10 + turn, world.CARELESS) for turn in range(2)]
    rows = [{"instruction": text, "response": each} for both in answers for text, each in zip(texts, both, strict=True)]
    return candidates(build.joint_candidates(build.items_of(rows), count, seed)), texts


def verdict(pair, noise, rng):
    """1, 0 or 0.5: whether the first item is the better one."""
    items = (pair.instruction_0, pair.response_0), (pair.instruction_1, pair.response_1)
    if not noise:
        return {"A": 1.0, "B": 0.0, "tie": 0.5}[world.compare(*items)]
    first, second = (world.quality(*item) or 0.0 for item in items)
    return float(rng.random() < probability((first - second) / noise))


def curves(lm, options, seed):
    """strategy -> share of held-out pairs that stand in the judge's order, before any answer and after each round."""
    pool, texts = joint_pairs(options.pool, seed, _INSTRUCTIONS)
    tests, _ = joint_pairs(options.tests, seed, _TESTS, texts)
    exact = np.array([verdict(pair, 0, None) for pair in tests])
    scored = score(lm, Pool(asked=[*pool, *tests]), encoder_of(lm, None, world.TEMPLATE))
    x, held_out = scored.features[: len(pool)], scored.features[len(pool) :][exact != 0.5]
    rng = np.random.default_rng(seed)
    answers = np.array([verdict(pair, options.noise, rng) for pair in pool])
    wanted = exact[exact != 0.5] == 1
    result = {}
    for strategy in STRATEGIES:
        found = ask_in_rounds(
            strategy,
            options.batch,
            x,
            lambda places: answers[places],
            turns=options.rounds,
            seed=seed,
            ridge=options.ridge,
        )
        result[strategy] = [float(np.mean((held_out @ w > 0) == wanted)) for _, w in found]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=800, help="candidates that can be asked")
    parser.add_argument("--tests", type=int, default=600, help="held-out pairs")
    parser.add_argument("--batch", type=int, default=20, help="comparisons of a round")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--ridge", type=float, default=RIDGE)
    parser.add_argument("--noise", type=float, default=0.0, help="scale of the annotator's noise; 0: exact")
    parser.add_argument("--json", help="also write every seed's curve here")
    options = parser.parse_args()
    lm = jpo.load(options.policy)
    seeds = [curves(lm, options, seed) for seed in range(options.seeds)]
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
