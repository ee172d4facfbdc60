"""How many answers are needed, by the way the comparisons are chosen: `jpo pairs --select` on the embedded world, with
its exact judge, or on people's own labels.

`python -m tests.benchmarks.selection --policy demo/policy` (a study's policy: `jpo demo --output demo` makes one). A
seed is a pool of joint candidates over texts of the world's writers, and held-out pairs over other instructions. Each
round asks a batch, trains a new adapter on all answers so far (--refit head: fits the linear reward over the policy's
mean hidden states instead), and counts the held-out pairs, ties left out, that it orders as the judge does. Prints
means over the seeds with Student's intervals, and each strategy's difference from chance on the same seeds. --noise
replaces the exact judge by an annotator whose answers are drawn by the difference of qualities (Bradley-Terry).

`python -m tests.benchmarks.selection --policy smollm2-135m --labelled PAIRS.jsonl --refit head` (conditional preference
records): a seed parts their instructions into those to ask about and held-out ones (a third); a comparison sets a
response that people chose beside one that they rejected, of two instructions, and the simulated annotator answers as
they labelled them. The mean hidden states of a text are read once for all seeds. --plot FILE.png draws the curves.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json

import numpy as np

import jpo
from jpo.data.batches import permutation
from jpo.data.readers import read_records
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
        self.template = world.TEMPLATE

    def by_head(self, lm, strategy):
        """(share of held-out pairs in the judge's order, log loss) after each round; refit: the linear reward."""
        pool = candidates(self.records)
        x = score(lm, Pool(asked=[*pool, *self.tests]), encoder_of(lm, None, self.template)).features
        answers = np.array([{0: 1.0, 1: 0.0, 2: 0.5}[record["answer"]] for record in self.records])
        options = {"turns": self.options.rounds, "seed": self.seed}
        found = ask_in_rounds(strategy, self.options.batch, x[: len(pool)], lambda at: answers[at], **options)
        return [self.judged(x[len(pool) :] @ w) for _, w in found]

    def judged(self, margins):
        """(share of held-out pairs that the margins order as the judge does, mean log loss)."""
        signed = np.where(self.wanted, margins, -margins)
        return float(np.mean(signed > 0)), float(np.mean(np.logaddexp(0, -signed)))

    def by_adapter(self, lm, strategy):
        """The same; refit: a new adapter, trained from the policy on all answers so far."""
        encoder, answered, adapter, shares = encoder_of(lm, None, self.template), [], None, []
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
            shares.append(self.judged(score(lm, Pool(asked=self.tests), encoder, adapter).margins))
        lm.remove_adapter()
        return shares


class Labelled(World):
    """A seed's pool and held-out pairs of people's own labels: chosen beside rejected, of two instructions."""

    def __init__(self, options, seed):
        self.options, self.seed, self.template = options, seed, None
        given = read_records(options.labelled)
        order = [given[place] for place in permutation(len(given), seed)]
        held = len(order) // 3
        self.records, tests = (
            build.joint_candidates(build.items_of(part), count, seed, {"CR": 1.0})
            for part, count in ((order[held:], options.pool), (order[:held], options.tests))
        )
        for record in self.records:
            record["answer"] = int(record["label_0"] != "chosen")
        self.tests, self.wanted = candidates(tests), np.array([record["label_0"] == "chosen" for record in tests])


class Remembered:
    """A model whose mean hidden states are read once a text."""

    def __init__(self, lm):
        self.tokenizer, self.config, self._lm, self._known = lm.tokenizer, lm.config, lm, {}

    def mean_hidden(self, lists):
        """As the model's own."""
        new = [ids for ids in map(tuple, lists) if ids not in self._known]
        if new:
            self._known |= zip(new, self._lm.mean_hidden(new), strict=True)
        return np.stack([self._known[tuple(ids)] for ids in lists])


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
    parser.add_argument("--labelled", help="preference records whose labels the simulated annotator answers by")
    parser.add_argument("--json", help="also write every seed's curve here")
    parser.add_argument("--plot", help="also draw the curves here")
    options = parser.parse_args()
    if options.labelled and options.refit != "head":
        parser.error("--labelled needs --refit head")
    lm = jpo.load(options.policy)
    if options.refit == "head":
        lm = Remembered(lm)
    seeds = []
    for seed in range(options.seeds):
        asked = (Labelled if options.labelled else World)(options, seed)
        ask = asked.by_head if options.refit == "head" else asked.by_adapter
        seeds.append({strategy: ask(lm, strategy) for strategy in STRATEGIES})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(seeds, file)
    for name, scale, measure, digits in (("percent in the judge's order", 100, 0, 1), ("log loss", 1, 1, 3)):
        curves = {key: scale * np.array([found[key] for found in seeds])[:, :, measure] for key in STRATEGIES}
        print(f"\n{name}\n\n{_table(curves, options.batch, digits)}")
    if options.plot:
        _plot(seeds, options)


def _table(curves, batch, digits):
    """Markdown: a row a round, means over the seeds (first axis of the curves) and differences from chance."""
    differences = {f"{name} - random": curves[name] - curves["random"] for name in STRATEGIES[1:]}
    columns = {**curves, **differences}
    rounds = len(curves["random"][0])
    rows = [
        [str((turn + 1) * batch), *(_with_interval(x[:, turn], digits) for x in columns.values())]
        for turn in range(rounds)
    ]
    rows.append(["mean", *(_with_interval(x.mean(axis=1), digits) for x in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in [["answers", *columns], ["---"] * (len(columns) + 1), *rows])


def _with_interval(values, digits):
    found = t_interval([float(value) for value in values])
    half = "" if found["high"] is None else f" ± {found['high'] - found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{half}"


def _plot(seeds, options):
    from matplotlib.figure import Figure

    figure = Figure((10, 4), layout="constrained")
    for axes, name, measure in zip(figure.subplots(1, 2), ("accuracy", "log loss"), (0, 1), strict=True):
        answers = options.batch * np.arange(1, options.rounds + 1)
        for shift, strategy in enumerate(STRATEGIES):
            curve = np.array([found[strategy] for found in seeds])[:, :, measure]
            halves = [(found["high"] or found["mean"]) - found["mean"] for found in map(t_interval, curve.T.tolist())]
            place = answers + (shift - 1) * options.batch / 12
            axes.errorbar(place, curve.mean(axis=0), halves, marker="o", markersize=4, capsize=2, label=strategy)
        axes.set(xlabel="answers", ylabel=f"held-out {name}")
        axes.legend(frameon=False)
    figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
