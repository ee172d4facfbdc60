"""A study's stages over an executor: what a worker is told, and the shard that it computes.

A worker runs `jpo study --output FOLDER --stage "WORK ARGUMENT" --shard i/n`: the same stage on the same files, but for
its part, into the shard's file. Knows stages by name; never how a shard reaches its worker.
"""

from __future__ import annotations

import os

from jpo.declared import read_yaml
from jpo.errors import JpoError
from jpo.parallel.shards import Shard
from jpo.study.config import StudyConfig
from jpo.study.stages import Stages
from jpo.study.study import planned_runs

_OF_A_STUDY = ("candidates", "conditional", "joint")
_OF_A_RUN = ("reference", "sample", "verdicts", "alpaca_sample", "alpaca_judge")


def run_shard(folder: str, work: str, shard: str) -> None:
    """One shard of a stage of the study in `folder`. work: one of those above with the run's name, or with the records
    of a round of feedback."""
    path = os.path.join(folder, "study.yaml")
    config = StudyConfig.from_dict({**read_yaml(path), "output": folder}, path)
    stages = Stages(config, folder, lambda done, total, what: None)
    stages.shard = Shard.parse(shard)
    name, _, argument = work.partition(" ")
    if name in _OF_A_STUDY:
        stages.count = int(argument or 0)
        getattr(stages, name)()
        return
    found = [run for run in planned_runs(config) if run.name == argument]
    if name not in _OF_A_RUN or not found:
        raise JpoError(f"--stage: expected work of the study in {folder}, got {work!r}")
    getattr(stages, name)(found[0])
