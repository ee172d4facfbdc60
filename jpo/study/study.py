"""A study: its stages in order, what of them is done, and the run that goes on where a killed one was.

Every stage leaves one file or folder, written aside and renamed; a stage is done when that is there. So the files say
everything, and a run after kill -9 ends with the numbers of an undisturbed one. Knows the order; the stages themselves
are in jpo.study.stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jpo.declared import read_yaml
from jpo.disk import lock, sha256_of, sweep_temporaries, write_json, write_text
from jpo.errors import JpoError
from jpo.feedback.salvage import salvage as salvage_journal
from jpo.formats.peft import is_adapter
from jpo.parallel.executors import opened
from jpo.study.config import FREE, WORLD, StudyConfig
from jpo.study.display import Display
from jpo.study.estimate import describe, estimate
from jpo.study.results import MIXED, gather
from jpo.study.stages import Run, Stages
from jpo.train.progress import hidden_bar

_CLOCK = 2.0  # seconds by which a file system's clock may be behind


@dataclass(frozen=True)
class Stage:
    """`output`: the file or folder, relative to the study's, that says that the stage is done."""

    name: str
    output: str
    work: Callable[[], None]


def run_study(config: StudyConfig, show: bool = True, salvage: bool = False) -> dict[str, Any]:
    """Run (or go on with) the study in config.output; its results, as they stand in results.json beside report.html.
    salvage: of a damaged journal of verdicts what is sound is kept. {} on an MPI rank that has worked for another.

    JpoError where the folder holds a study of other settings, or is in use by another process.
    """
    if not config.output:
        raise JpoError("output: missing; it is the directory of the study")
    config.check_files()
    study = Study(config)
    with contextlib.ExitStack() as stack:
        if config.executor:
            study.stages.pool = pool = stack.enter_context(opened(config.executor))
            if pool.serving:
                return {}
        stack.enter_context(study.locked())
        study.check_settings()
        if salvage:
            print(f"jpo: {salvage_journal(study.stages.journal)}", file=sys.stderr, flush=True)
        return study.run(show)


class Study:
    """The stages of a config."""

    def __init__(self, config: StudyConfig):
        assert config.output
        self.config, self.folder = config, config.output
        self.display = Display(False)
        self.stages = Stages(config, self.folder, lambda done, total, what: self.display.inner(done, total, what))
        self.runs = planned_runs(config)

    def plan(self) -> list[Stage]:
        """Every stage, in the order in which they run."""
        s, c = self.stages, self.config
        plan = [Stage("data", "data/test.jsonl", s.data)]
        if c.model == WORLD:
            plan.append(Stage("pre-train the decoder", "base", s.pretrain))
        if c.policy and is_adapter(c.policy):
            plan.append(Stage("merge the given SFT policy", "policy", s.given_policy))
        elif c.model == WORLD or (c.sft_data and not c.policy):
            plan.append(Stage("fine-tune the SFT policy", "policy", s.sft))
        if c.conditional_pairs:
            plan.append(Stage("given conditional pairs", "feedback/conditional.jsonl", s.given_conditional))
        else:
            plan.append(Stage("sample candidates", "feedback/samples.jsonl", s.candidates))
            plan.append(Stage("conditional feedback", "feedback/conditional.jsonl", s.conditional))
        if c.joint_pairs:
            plan.append(Stage("given joint pairs", "feedback/joint.jsonl", s.given_joint))
        else:
            plan.append(Stage("joint feedback", "feedback/joint.jsonl", s.joint))
        plan.append(Stage("interplay", "interplay.json", s.interplay))
        plan.append(Stage("preference pairs", "pairs/joint.jsonl", s.pairs))
        for run in self.runs:
            if run.method != "sft":
                plan.append(Stage(f"train {run.name}", f"runs/{run.name}", partial(s.train, run)))
            plan.append(Stage(f"sample {run.name}", f"samples/{run.name}.jsonl", partial(s.sample, run)))
            plan.append(Stage(f"judge {run.name}", f"verdicts/{run.name}.jsonl", partial(s.verdicts, run)))
        for run in (run for run in self.runs if run.main and c.alpaca_eval):
            plan.append(Stage(f"AlpacaEval: sample {run.name}", s.alpaca_samples(run), partial(s.alpaca_sample, run)))
            plan.append(Stage(f"AlpacaEval: judge {run.name}", s.alpaca_verdicts(run), partial(s.alpaca_judge, run)))
        return plan

    def skipped(self) -> list[str]:
        """What is left out because it is given, a line each."""
        c = self.config
        found = []
        if c.policy:
            found.append(f"the SFT policy is given ({c.policy}): no fine-tuning")
        if c.conditional_pairs:
            found.append(f"conditional pairs are given ({c.conditional_pairs}): no candidates, no conditional feedback")
        if c.joint_pairs:
            found.append(
                f"joint pairs are given ({c.joint_pairs}): no joint feedback; interplay needs verdicts, and has none"
            )
        return found

    def done(self, stage: Stage) -> bool:
        """Whether a stage has left its output."""
        return os.path.exists(os.path.join(self.folder, stage.output))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder belongs to this process; the lock goes with it, however it ends."""
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise JpoError(f"{self.folder}: cannot be the directory of a study: {error.strerror}") from None
        with open(os.path.join(self.folder, ".lock"), "a", encoding="ascii") as file:
            lock(file, f"{self.folder}: another process runs this study; wait for it, or end it")
            for name in ("", "data", "feedback", "pairs", "samples", "verdicts", "alpaca_eval"):
                sweep_temporaries(os.path.join(self.folder, name))
            yield

    def check_settings(self) -> None:
        """study.yaml holds the settings: they may grow by methods, seeds and amounts, not change otherwise."""
        import yaml

        path, now = os.path.join(self.folder, "study.yaml"), self.config.to_dict()
        if os.path.exists(path):
            before = read_yaml(path)
            before = {**_defaults(), **before}  # a study of an earlier release lacks the later options
            changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
            if changed:
                shown = "; ".join(f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in changed)
                raise JpoError(f"{path}: this study has other settings ({shown}); give the same, or another output")
        elif any(os.path.exists(os.path.join(self.folder, stage.output)) for stage in self.plan()):
            raise JpoError(f"{self.folder}: holds files of a study but no study.yaml; choose another output")
        write_text(path, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))

    def run(self, show: bool) -> dict[str, Any]:
        """The stages that are not done, then results.json and report.html."""
        from jpo.study.report import write_report

        plan = self.plan()
        self.display = Display(show)
        for line in self.skipped() if show else ():
            print(line, file=sys.stderr, flush=True)
        with self._damage_named(plan), self.display.shown(len(plan)), hidden_bar():
            for number, stage in enumerate(plan, 1):
                if self.done(stage):
                    self.display.skipped(number)
                    continue
                self.display.begin(number, stage.name)
                os.makedirs(os.path.dirname(os.path.join(self.folder, stage.output)), exist_ok=True)
                began, before = time.time(), time.perf_counter()
                stage.work()
                self._note(stage, began, time.perf_counter() - before)
                self.display.end(number, stage.name, time.perf_counter() - before)
        before = time.perf_counter()
        with self._damage_named(plan):
            results = gather(self.stages, self.runs, self._seconds(plan))
            results["seconds"] = round(results["seconds"] + time.perf_counter() - before, 2)
            write_json(os.path.join(self.folder, "results.json"), results)
            write_report(self.stages, self.runs, results, os.path.join(self.folder, "report.html"))
        return results

    @contextlib.contextmanager
    def _damage_named(self, plan: list[Stage]) -> Iterator[None]:
        """What fails over a file that was changed since its stage wrote it is a JpoError that names the file; every
        other failure goes on as it is."""
        try:
            yield
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            for stage, path in self._changed(plan):
                raise JpoError(
                    f"{path}: is not what the study wrote ({type(error).__name__}: {error}); remove "
                    f"{os.path.join(self.folder, stage.output)}, and the stage {stage.name!r} runs again"
                ) from error
            raise

    def _written(self, stage: Stage, began: float) -> list[str]:
        """The JSON files that a stage has written since `began` (time.time()) into the folder that it leaves or that
        its output stands in, relative to the study's; at the study's top, its output alone."""
        place = os.path.join(self.folder, stage.output)
        folder = stage.output if os.path.isdir(place) else os.path.dirname(stage.output)
        names = sorted(os.listdir(os.path.join(self.folder, folder))) if folder else [stage.output]
        found = [os.path.join(folder, name) for name in names if name.endswith((".json", ".jsonl"))]
        return [name for name in found if os.path.getmtime(os.path.join(self.folder, name)) >= began - _CLOCK]

    def _changed(self, plan: list[Stage]) -> Iterator[tuple[Stage, str]]:
        """Files that are not as they were when a stage ended, and that stage."""
        known: dict[str, tuple[str, str]] = {}
        for row in self._notes():
            for name, digest in row.get("sha256", {}).items():
                if known.get(name, ("", None))[1] != digest:  # as it was when the next stage noted it, too
                    known[name] = row["stage"], digest
        stages = {stage.name: stage for stage in plan}
        for name, (stage, digest) in known.items():
            path = os.path.join(self.folder, name)
            if stage in stages and os.path.isfile(path) and sha256_of(path) != digest:
                yield stages[stage], path

    def _note(self, stage: Stage, began: float, seconds: float) -> None:
        digests = {name: sha256_of(os.path.join(self.folder, name)) for name in self._written(stage, began)}
        with open(os.path.join(self.folder, "seconds.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage.name, "seconds": round(seconds, 3), "sha256": digests}) + "\n")

    def _seconds(self, plan: list[Stage]) -> Mapping[str, float]:
        """Each stage's time as it was last run."""
        found = {row["stage"]: row["seconds"] for row in self._notes()}
        return {stage.name: found.get(stage.name, 0.0) for stage in plan}

    def _notes(self) -> list[dict[str, Any]]:
        """What was noted when stages ended; a torn line (kill -9) or one of another form is passed over."""
        path = os.path.join(self.folder, "seconds.jsonl")
        if not os.path.exists(path):
            return []
        found = []
        with open(path, "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return [
            row
            for row in found
            if isinstance(row, dict)
            and isinstance(row.get("stage"), str)
            and isinstance(row.get("seconds"), (int, float))
            and isinstance(row.get("sha256", {}), dict)
        ]

    def describe(self) -> str:
        """What a dry run prints: each stage, done or to do, and where it leaves what."""
        plan = self.plan()
        done = [self.done(stage) for stage in plan]
        lines = [
            f"{'done ' if there else 'to do'}  {stage.name:<34} {os.path.join(self.folder, stage.output)}"
            for stage, there in zip(plan, done, strict=True)
        ]
        c = self.config
        lines.append(f"to do  {'results and report':<34} {os.path.join(self.folder, 'report.html')}")
        lines.append(
            f"{len(plan)} stages, {sum(done)} done; {len(self.runs)} policies: {len(c.methods)} methods x "
            f"{len(c.training_seeds)} seeds; {len(self.runs) * len(c.temperatures)} samples of {c.test_size} instructions"
        )
        if len(c.training_seeds) < 3:
            lines.append("underpowered: fewer than 3 training seeds")
        finished = [stage.name for stage, there in zip(plan, done, strict=True) if there]
        c.check_files()
        return "\n".join([*self.skipped(), *lines, *describe(estimate(c, self.runs, finished), c)])


def _defaults() -> dict[str, Any]:
    """Every option as it is where nothing is said, for the options that an older study.yaml lacks."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(StudyConfig):
        made: Any = item.default_factory
        found[item.name] = made() if item.default is dataclasses.MISSING else item.default
    return found


def planned_runs(config: StudyConfig) -> list[Run]:
    """Every training and sampling: the table's, the scaling curve's, the mixing study's."""
    runs = [Run(method, seed) for method in config.methods for seed in config.training_seeds]
    scaling = [method for method in config.scaling_methods if method in config.methods and method != "sft"]
    for amount in config.amounts:
        runs += [Run(method, seed, amount) for method in scaling for seed in config.training_seeds]
    for share in config.mixing:
        runs += [Run("jpo_union", seed, share=share) for seed in config.training_seeds]
    if config.mixing and config.train.get("epochs") is None:
        there = [*(["dpo"] if "dpo" in config.methods else []), *(["jpo_union"] if config.union == "epochs" else [])]
        missing = [method for method in MIXED if method not in there or method not in config.methods]
        runs += [Run(method, seed, epochs=True) for method in missing for seed in config.training_seeds]
    return runs
