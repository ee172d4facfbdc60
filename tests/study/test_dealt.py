"""A study over an executor: every stage that is dealt, shard by shard, leaves the files of one process."""

import contextlib
import os
import shutil

import pytest
import yaml

from jpo.cli.main import main
from jpo.errors import JpoError
from jpo.feedback.journal import Journal
from jpo.study import load_config, run_study, study
from jpo.study.dealt import run_shard

SMALL = {
    "sft_size": 100, "conditional_size": 60, "candidates_size": 90, "joint_size": 8, "joint_candidates_size": 8,
    "test_size": 34, "max_new_tokens": 14, "methods": ["sft", "dpo"], "training_seeds": [1], "temperatures": [1.0],
    "hidden_size": 32,
    "pretrain": {"texts": 800, "batch_size": 16, "steps": 90, "learning_rate": 0.005},
    "sft": {"full": True, "batch_size": 32, "epochs": 1, "learning_rate": 0.001},
    "train": {
        "batch_size": 8, "epochs": None, "steps": 2, "precompute_ref_log_probs": True, "max_length": 64,
        "max_prompt_length": 32,
    },
}  # fmt: skip
COMPARED = [
    "feedback/samples.jsonl", "feedback/conditional.jsonl", "feedback/joint.jsonl", "pairs/joint.jsonl",
    "runs/dpo-seed1/adapter_model.safetensors", "samples/sft-seed1.jsonl", "samples/dpo-seed1.jsonl",
    "verdicts/dpo-seed1.jsonl",
]  # fmt: skip


class InTurn:
    """An executor's pool that runs each shard here, the last one first; of the first stage by its command."""

    serving = False

    def __init__(self):
        self.work = []

    def run(self, arguments, shards=None, progress=None):
        self.work.append(arguments[-1])
        for index in (2, 1, 0):
            if len(self.work) == 1:
                assert main([*arguments, "--shard", f"{index}/3"]) == 0
            else:
                run_shard(arguments[2], arguments[4], f"{index}/3")
        return 3


def verdicts(folder):
    journal = Journal(str(folder / "feedback" / "verdicts.sqlite"), create=False)
    try:
        return sorted((entry.key, entry.verdict) for entry in journal.entries())
    finally:
        journal.close()


def test_the_files_are_those_of_one_process(tmp_path, monkeypatch):
    pool = InTurn()
    monkeypatch.setattr(study, "opened", lambda spec: contextlib.nullcontext(pool))
    settings = tmp_path / "study.yaml"
    settings.write_text(yaml.safe_dump(SMALL))
    found = {}
    (tmp_path / "many").mkdir()
    for name, executor in (("one", None), ("many", "processes:3")):
        config = load_config(str(settings), output=str(tmp_path / name), executor=executor)
        if name == "many":  # from the same policy on: what comes before is not dealt
            for there in ("study.yaml", "data", "base", "policy", "sft"):
                copy = shutil.copytree if (tmp_path / "one" / there).is_dir() else shutil.copy
                copy(tmp_path / "one" / there, tmp_path / name / there)
        found[name] = run_study(config, show=False)
    assert found["one"]["win_rates"] == found["many"]["win_rates"]
    for path in COMPARED:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "many" / path).read_bytes(), path
    assert verdicts(tmp_path / "one") == verdicts(tmp_path / "many")
    kinds = {work.split(" ")[0] for work in pool.work}
    assert kinds == {"candidates", "conditional", "joint", "reference", "sample", "verdicts"}
    left = [name for _, _, names in os.walk(tmp_path / "many") for name in names if "-of-" in name or ".part" in name]
    assert not left
    with pytest.raises(JpoError, match="--stage: expected work of the study in .*, got 'sample nobody'"):
        run_shard(str(tmp_path / "many"), "sample nobody", "0/2")
