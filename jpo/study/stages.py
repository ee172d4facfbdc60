"""What each stage of a study does: from data to judged samples, each one file (or folder) written aside and renamed.

A stage reads the files of the stages before it and nothing else, so that a killed study goes on at the first stage
whose file is missing. Knows the pipeline's functions; never how stages are listed, shown or reported.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jpo
from jpo.data.readers import iter_records, read_records, write_records
from jpo.data.report import Report
from jpo.data.templates import DEFAULT
from jpo.disk import aside, settle, write_json
from jpo.errors import DataError, JpoError
from jpo.evaluate.alpaca_eval import annotated, read_evaluation_set
from jpo.evaluate.judging import judge_generations
from jpo.evaluate.released import read_known
from jpo.evaluate.sampling import Sampling, encoder_of, iter_samples, sample
from jpo.feedback import pairs as build
from jpo.feedback.acquire import acquire
from jpo.feedback.interplay import interplay
from jpo.feedback.judges import CallableJudge, make_judge
from jpo.feedback.prompts import Question
from jpo.formats.peft import is_adapter
from jpo.model import LanguageModel
from jpo.parallel.executors import Pool
from jpo.parallel.shards import Shard, join
from jpo.study import decoder, given, world
from jpo.study.config import WORLD, StudyConfig
from jpo.study.data import CANDIDATES, JOINT, POOL, TEXTS, given_data, some, world_data
from jpo.study.methods import METHODS, amount_of, mixture, swapped
from jpo.train import checkpoint
from jpo.train.config import DEFAULT_STEPS

Inner = Callable[[int, int | None, str], None]  # (done, total or None, what) within a stage
_WORLD_CONCURRENCY = 64  # verdicts that share one sync of the journal


@dataclass(frozen=True)
class Run:
    """One training (of the policy "sft": none) and its samples. `share`: of the mixing study at equal pairs, joint
    pairs by all; `epochs`: of the mixing study at equal epochs, where training is otherwise told in steps."""

    method: str
    seed: int
    amount: float = 1.0
    share: float | None = None
    epochs: bool = False

    @property
    def main(self) -> bool:
        """Whether the run belongs to the win-rate table."""
        return self.amount == 1 and self.share is None and not self.epochs

    @property
    def label(self) -> str:
        """The same for all seeds: the model's name in samples and tables."""
        if self.share is not None:
            return f"mix@{self.share:g}"
        if self.epochs:
            return f"{self.method}@epochs"
        return self.method if self.amount == 1 else f"{self.method}@{self.amount:g}"

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.label}-seed{self.seed}"


class Stages:
    """The stages over one folder."""

    def __init__(self, config: StudyConfig, folder: str, inner: Inner):
        self.config, self.folder, self.inner = config, folder, inner
        self.pool: Pool | None = None  # workers of the study's executor
        self.shard: Shard | None = None  # of a stage, in a worker's process
        self.count = 0  # and the records of its round
        self._policy: LanguageModel | None = None
        self._local: Any = None  # the local judge: its model is loaded once
        self._question: Question | None = None

    def path(self, *parts: str) -> str:
        """A file or folder of the study."""
        return os.path.join(self.folder, *parts)

    @property
    def template(self) -> str:
        """The prompt template's name or text."""
        c = self.config
        if c.template is None and c.policy and is_adapter(c.policy):
            return given.template_of(c.policy)
        return c.template or (world.TEMPLATE if c.model == WORLD else DEFAULT)

    # data and policy

    def data(self) -> None:
        """data/{sft,instructions,test}.jsonl, the last one last."""
        sft, texts, test = world_data(self.config) if self.config.model == WORLD else given_data(self.config)
        write_records(self.path("data", "sft.jsonl"), sft)
        write_records(self.path("data", "instructions.jsonl"), texts)
        write_records(self.path("data", "test.jsonl"), test)

    def pretrain(self) -> None:
        """base/: the world's decoder, from random weights, on texts of instructions and responses."""
        c = self.config
        held = [row["instruction"] for name in ("test", "instructions") for row in self._rows("data", f"{name}.jsonl")]
        texts = world.instructions(int(c.pretrain.get("texts", 10_000)), c.seed, TEXTS, held)
        answers = world.responses(texts, c.seed, TEXTS, world.CARELESS)
        lm = LanguageModel(decoder.random_decoder(c.seed, c.hidden_size, c.layers))
        part = self.path("base.part")
        config = c.pretrain_options(seed=c.seed, template="raw", output=part, save_total_limit=1)
        self._train(jpo.SFTTrainer(lm, world.reading(texts, answers), config), part)
        settle(part, self.path("base"))

    def sft(self) -> None:
        """policy/: the SFT policy as a whole model, and sft/: its run."""
        c = self.config
        lm = jpo.load(self.path("base") if c.model == WORLD else self._named, compute=self.config.compute)
        run, whole = self.path("sft.part"), self.path("policy.part")
        config = c.sft_options(seed=c.seed, template=self.template, output=run, save_total_limit=1)
        self._train(jpo.SFTTrainer(lm, self._rows("data", "sft.jsonl"), config), run)
        shutil.rmtree(whole, ignore_errors=True)
        lm.merge(whole)
        shutil.rmtree(self.path("sft"), ignore_errors=True)
        settle(run, self.path("sft"))
        settle(whole, self.path("policy"))

    def given_policy(self) -> None:
        """policy/: the model with the given adapter, as a whole model."""
        c = self.config
        assert c.policy
        lm = jpo.load(self._named, compute=self.config.compute)
        lm.load_adapter(c.policy)
        whole = self.path("policy.part")
        shutil.rmtree(whole, ignore_errors=True)
        lm.merge(whole)
        settle(whole, self.path("policy"))

    def _train(self, trainer: Any, output: str) -> None:
        """To the end, from the last checkpoint where there is one; the checkpoints go afterwards."""
        resume = bool(checkpoint.finished(output))
        if not resume:
            shutil.rmtree(output, ignore_errors=True)
        trainer.train(
            resume, [lambda row: self.inner(row["step"], None, f"step {row['step']}, loss {row['loss']:.3f}")]
        )
        checkpoint.prune_all(output)

    @property
    def _named(self) -> str:
        """The model that the study was given."""
        if self.config.model is None:
            raise JpoError("model: the study has none; expected world, a name, a directory or a GGUF file")
        return self.config.model

    @property
    def policy(self) -> LanguageModel:
        """The SFT policy, loaded once; its adapter is whichever run is at work."""
        if self._policy is None:
            own = os.path.isdir(self.path("policy"))
            named = self.config.policy or self._named
            self._policy = jpo.load(self.path("policy") if own else named, compute=self.config.compute)
        return self._policy

    # feedback

    def _rows(self, *parts: str) -> list[Any]:
        return read_records(self.path(*parts))

    def _deal(self, work: str, output: str) -> None:
        """Over the study's executor, if it has one: workers compute the shards of `output` (jpo.study.dealt), which are
        joined, and their verdicts' journals with the study's; this process then finds nothing left to draw or to
        ask."""
        if self.pool is not None:
            told = ["study", "--output", self.folder, "--stage", work]
            count = self.pool.run(told, None, lambda done, total: self.inner(done, total, "shards"))
            join(output, count, journal=self.journal)

    def _samples(self, work: str, lm: Any, records: list[Any], settings: Sampling, output: str, **options: Any) -> None:
        part = output.removesuffix(".jsonl") + ".part.jsonl"
        os.makedirs(os.path.dirname(output), exist_ok=True)
        options.setdefault("encoder", encoder_of(lm, None, self.template))
        if self.shard is not None:
            with aside(self.shard.path(part)) as path:
                list(iter_samples(lm, records, settings, output=path, shard=self.shard, **options))
            return
        self._deal(work, part)
        sample(lm, records, settings, output=part, progress=lambda a, b: self.inner(a, b, "samples"), **options)
        settle(part, output)

    @property
    def question(self) -> Question:
        """How the judge is asked."""
        if self._question is None:
            self._question = self.config.question
        return self._question

    def _candidate_settings(self) -> Sampling:
        c = self.config
        return Sampling((c.candidate_temperature,), (c.seed,), 2, 1.0, c.top_k, c.max_new_tokens)

    def _first(self) -> list[Any]:
        """The instructions of the first round: as many as pairs are wanted."""
        return self._rows("data", "instructions.jsonl")[: self.config.conditional_size]

    def candidates(self) -> None:
        """feedback/samples.jsonl: two samples of each instruction of the first round."""
        self.policy.remove_adapter()
        output = self.path("feedback", "samples.jsonl")
        self._samples("candidates", self.policy, self._first(), self._candidate_settings(), output, model="sft")

    def _candidates_of(self, instructions: list[Any]) -> list[Any]:
        """Their samples: the first round's, and those of later ones, which the same file takes up."""
        path = self.path("feedback", "samples.jsonl")
        if self.shard is not None or len(instructions) <= len(self._first()):
            # whole in any case; what stands behind may be torn
            return list(itertools.islice(iter_records(path), 2 * len(instructions)))
        self.policy.remove_adapter()
        encoder = encoder_of(self.policy, None, self.template)
        options: dict[str, Any] = {"output": path, "model": "sft", "encoder": encoder}
        options["progress"] = lambda a, b: self.inner(a, b, "samples")
        return sample(self.policy, instructions, self._candidate_settings(), **options)

    def _judge(self) -> Any:
        c = self.config
        if c.judge == WORLD:
            return CallableJudge(_exact, f"world, tie below {world.TIE:g}")
        if self._local is not None:
            return self._local
        judge = make_judge(
            c.judge,
            base_url=c.base_url,
            model=c.judge_model,
            timeout=c.timeout,
            temperature=c.judge_temperature,
            max_tokens=c.judge_max_tokens,
            question=self.question,
        )
        if c.judge == "local":
            self._local = judge
        return judge

    @property
    def journal(self) -> str:
        """The file of every verdict of the study."""
        return self.path("feedback", "verdicts.sqlite")

    def _judging(self) -> dict[str, Any]:
        concurrency = _WORLD_CONCURRENCY if self.config.judge == WORLD else self.config.concurrency
        shard = self.shard
        return {
            "journal": self.journal if shard is None else shard.path(self.journal),
            "beside": None if shard is None else self.journal,
            "question": self.question,
            "concurrency": concurrency,
            "progress": lambda a, b: self.inner(a, b, "verdicts"),
        }

    def conditional(self) -> None:
        """feedback/conditional.jsonl: two responses to one instruction, judged, until enough pairs are decided or no
        instruction is left. Equal samples are no candidates."""
        c = self.config
        assert c.conditional_size
        pool = self._rows("data", "instructions.jsonl")

        def rows(count: int) -> list[Any]:
            found = build.conditional_candidates(self._candidates_of(pool[:count]), 1, c.seed, report=Report())
            if not found:
                raise JpoError("the two samples of every instruction are equal; raise candidate_temperature")
            return found

        self._judged("conditional", rows, c.conditional_size, len(pool))

    def _judged(self, kind: str, rows: Callable[[int], list[Any]], wanted: int, most: int) -> None:
        """feedback/KIND.jsonl in rounds, each as large as the share of decided verdicts so far makes it, twice the one
        before at most. What was judged is in the journal, so that a killed study repeats its rounds for nothing."""
        final, part = self.path("feedback", f"{kind}.jsonl"), self.path("feedback", f"{kind}.part.jsonl")
        if self.shard is not None:
            own = rows(self.count)
            own = own[slice(*self.shard.range(len(own)))]
            acquire(own, self.shard.path(part), self._judge(), **self._judging())
            return
        count = min(wanted, most)
        while True:
            if self.pool is not None:
                rows(count)  # samples that are missing are drawn before they are judged
                self._deal(f"{kind} {count}", part)
            summary = acquire(rows(count), part, self._judge(), **self._judging())
            decided = summary.feedback["0"] + summary.feedback["1"]
            if decided >= wanted or count >= most:
                break
            missing = math.ceil((wanted - decided) * count / max(decided, 1))
            count = min(most, count + max(1, missing), 2 * count)
        settle(part, final)

    def given_conditional(self) -> None:
        """feedback/conditional.jsonl: the given pairs as decided verdicts."""
        c = self.config
        assert c.conditional_pairs
        pairs = given.pairs_of(c.conditional_pairs, joint=False)
        chosen = some(pairs, c.conditional_size or len(pairs), c.seed, CANDIDATES)
        write_records(self.path("feedback", "conditional.jsonl"), given.as_conditional(chosen))

    def given_joint(self) -> None:
        """feedback/joint.jsonl: the given pairs as decided verdicts."""
        c = self.config
        assert c.joint_pairs
        pairs = given.pairs_of(c.joint_pairs, joint=True)
        chosen = some(pairs, c.joint_size or len(pairs), c.seed, JOINT)
        write_records(self.path("feedback", "joint.jsonl"), given.as_joint(chosen))

    def joint(self) -> None:
        """feedback/joint.jsonl: pairs of different instructions, labels travelling along, judged until enough are
        decided. The order of the candidates is random, so that each round has about the mix of all."""
        items = build.items_of(self._rows("feedback", "conditional.jsonl"))
        labelled = sum(item.label is not None for item in items)
        most = labelled * (labelled - 2) // 8  # so many pairs there are even of one kind alone
        if most < 1:
            raise JpoError(
                f"{labelled} labelled responses came out of the conditional feedback, too few for joint candidates; "
                "raise conditional_size, or look at the judge's verdicts in feedback/conditional.jsonl"
            )
        c = self.config
        assert c.joint_size
        count = min(c.joint_candidates_size or POOL * c.joint_size, most)
        rows = build.joint_candidates(items, count, c.seed, build.parse_mix(c.mix))
        self._judged("joint", lambda first: rows[:first], c.joint_size, count)

    def interplay(self) -> None:
        """interplay.json, as jpo interplay --json writes it."""
        write_json(self.path("interplay.json"), interplay(self._rows("feedback", "joint.jsonl")))

    def pairs(self) -> None:
        """pairs/{conditional,joint}.jsonl: the decided verdicts."""
        for kind in ("conditional", "joint"):
            found = build.preferences_from_feedback(self._rows("feedback", f"{kind}.jsonl"), report=Report())
            if not found:
                raise DataError(
                    f"{self.path('feedback', kind)}.jsonl: no verdict is decisive, and nothing can be trained on; look at "
                    "the judge's verdicts there"
                )
            size = self.config.conditional_size if kind == "conditional" else self.config.joint_size
            write_records(self.path("pairs", f"{kind}.jsonl"), found[: size or len(found)])

    # runs

    def pairs_of(self, run: Run) -> list[Any]:
        """What a run trains on."""
        sets = {kind: self._rows("pairs", f"{kind}.jsonl") for kind in ("conditional", "joint")}
        if run.share is not None:
            return mixture(sets["conditional"], sets["joint"], run.share, self.config.seed)
        some = {kind: amount_of(rows, run.amount, self.config.seed) for kind, rows in sets.items()}
        some["swapped"] = swapped(some["conditional"], self.config.seed)
        return [pair for kind in METHODS[run.method].data for pair in some[kind]]

    def _training(self, run: Run, **decided: Any) -> Any:
        """The trainer of a run, on the policy without an adapter."""
        self.policy.remove_adapter()
        decided |= {"seed": run.seed, "template": self.template, "save_total_limit": 1} | self._passes(run)
        return jpo.PreferenceTrainer(self.policy, self.pairs_of(run), self.config.train_options(run.method, **decided))

    def _logps(self, run: Run) -> str:
        return self.path("runs", f"{run.name}.ref.safetensors")

    def reference(self, run: Run) -> None:
        """A worker's part of the reference's log-likelihoods of a run."""
        self._training(run, ref_logps=self._logps(run)).precompute(self.shard)

    def _know_reference(self, run: Run, trainer: Any) -> None:
        """Over the study's executor, where the run is to precompute them."""
        if self.pool is None or not (trainer.needs_reference and trainer.config.precompute_ref_log_probs):
            return
        self._deal(f"reference {run.name}", self._logps(run))
        trainer.know_reference(self._logps(run))
        os.remove(self._logps(run))

    def train(self, run: Run) -> None:
        """runs/NAME/: the run's adapter and metrics."""
        part, final = self.path("runs", f"{run.name}.part"), self.path("runs", run.name)
        trainer = self._training(run, output=part)
        self._know_reference(run, trainer)
        self._train(trainer, part)
        write_json(os.path.join(part, "study.json"), {**dataclasses.asdict(run), "pairs": len(self.pairs_of(run))})
        settle(part, final)

    def _passes(self, run: Run) -> dict[str, Any]:
        """Of a run that is to take as many epochs as DPO's steps are of the conditional pairs, that many; else
        nothing."""
        c = self.config
        told = c.train_options(run.method)
        union = c.union == "epochs" and run.method == "jpo_union" and run.share is None
        if told.epochs is not None or not (run.epochs or union):
            return {}
        pairs = amount_of(self._rows("pairs", "conditional.jsonl"), run.amount, c.seed)
        steps = told.steps or min(DEFAULT_STEPS, math.ceil(len(pairs) / told.batch_size))
        return {"steps": None, "epochs": steps * told.batch_size / len(pairs)}

    def sample(self, run: Run) -> None:
        """samples/NAME.jsonl: every test instruction at every temperature."""
        rows, output = self._rows("data", "test.jsonl"), self.path("samples", f"{run.name}.jsonl")
        self._sampled("sample", run, rows, self.config.temperatures, output)

    def _sampled(self, work: str, run: Run, rows: list[Any], temperatures: Sequence[float], output: str) -> None:
        c, lm = self.config, self.policy
        lm.remove_adapter()
        own = lm.load_adapter(self.path("runs", run.name)) if run.method != "sft" else None
        settings = Sampling(temperatures, (run.seed,), 1, 1.0, c.top_k, c.max_new_tokens)
        encoder = encoder_of(lm, own, None if own else self.template)
        marks = {"model": run.label, "extra": {"training_seed": run.seed}}
        self._samples(f"{work} {run.name}", lm, rows, settings, output, encoder=encoder, **marks)

    def verdicts(self, run: Run) -> None:
        """verdicts/NAME.jsonl: the samples beside gold, judged."""
        final, part = self.path("verdicts", f"{run.name}.jsonl"), self.path("verdicts", f"{run.name}.part.jsonl")
        os.makedirs(os.path.dirname(final), exist_ok=True)
        samples, gold = self.path("samples", f"{run.name}.jsonl"), self.path("data", "test.jsonl")
        options = {"known": read_known(self.config.known_verdicts), **self._judging()}
        if self.shard is not None:
            judge_generations(samples, gold, self._judge(), self.shard.path(part), shard=self.shard, **options)
            return
        self._deal(f"verdicts {run.name}", part)
        judge_generations(samples, gold, self._judge(), part, **options)
        settle(part, final)

    # AlpacaEval 2 (the paper's figure 4c)

    def alpaca_samples(self, run: Run) -> str:
        """The file of a run's samples for the evaluation set, relative to the study's."""
        return f"alpaca_eval/{run.name}.samples.jsonl"

    def alpaca_verdicts(self, run: Run) -> str:
        """The file of a run's annotations, in AlpacaEval's form."""
        return f"alpaca_eval/{run.name}.annotations.json"

    def alpaca_sample(self, run: Run) -> None:
        """alpaca_eval/NAME.samples.jsonl: every instruction of the evaluation set once, at its own temperature."""
        assert self.config.alpaca_eval
        rows = read_evaluation_set(self.config.alpaca_eval)
        degrees = (self.config.alpaca_eval_temperature,)
        self._sampled("alpaca_sample", run, rows, degrees, self.path(self.alpaca_samples(run)))

    def alpaca_judge(self, run: Run) -> None:
        """alpaca_eval/NAME.annotations.json: the samples beside the baseline's outputs, judged in both orders; the
        verdicts as they came in NAME.judged.jsonl."""
        assert self.config.alpaca_eval
        gold = read_evaluation_set(self.config.alpaca_eval)
        output, samples = self.path("alpaca_eval", f"{run.name}.judged.jsonl"), self.path(self.alpaca_samples(run))
        if self.shard is not None:
            own = self.shard.path(output)
            judge_generations(samples, gold, self._judge(), own, shard=self.shard, **self._judging())
            return
        self._deal(f"alpaca_judge {run.name}", output)
        judged, _, _ = judge_generations(samples, gold, self._judge(), output, **self._judging())
        generators = {str(row["id"]): row["generator"] for row in gold}
        write_json(self.path(self.alpaca_verdicts(run)), annotated(judged, generators))


async def _exact(prompt: str) -> str:
    """The world's judge as a coroutine: too quick to be worth a thread."""
    return world.judge(prompt)


def read_json(path: str) -> Any:
    """A file of the study's own."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def verdict_rows(stages: Stages, runs: Sequence[Run]) -> list[Any]:
    """The judged samples of several runs."""
    return [row for run in runs for row in read_records(stages.path("verdicts", f"{run.name}.jsonl"))]
