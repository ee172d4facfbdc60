"""Short training runs whose results must not depend on the number of ranks: python cases.py OUTPUT, alone or under
mpiexec. Rank 0 writes {case: [digest of the trained values, rows of metrics, samples]} as JSON."""

import contextlib
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import jpo
from jpo.data import read_records
from jpo.parallel.ranks import announced, joined
from jpo.train.progress import hidden_bar

PAIRS = {"batch_size": 8, "steps": 2, "learning_rate": 1e-3, "warmup_steps": 0, "slots": 8, "lora_dropout": 0.1}
COMPUTES = ("float32", "int16", "bfloat16", "bfloat16x2", "bfloat16x3")
TIMES = {"step_seconds", "peak_rss_gb"}

CASES = {
    "joint, evaluated": {"eval": True, "save_steps": 1, "eval_samples": 3, "eval_max_new_tokens": 6},
    "response, few pairs a step": {"scope": "response", "batch_size": 3},
    "many micro-batches": {"token_budget": 64},
    "kto": {"loss": "kto", "token_budget": 256},
    "rpo": {"loss": "rpo"},
    "aot": {"loss": "aot", "token_budget": 128},
    "two losses, weighted": {"loss": "sigmoid,hinge", "loss_weights": "1,0.5", "r": 64, "target_modules": "all-linear"},
    "reference beforehand": {"ref_logps": True},
    "sft": {"sft": True},
    "sft full": {"sft": True, "full": True, "learning_rate": 1e-4},
}


def run(changes, compute):
    given = dict(changes)
    evaluated, sft = given.pop("eval", False), given.pop("sft", False)
    lm = jpo.load("tiny", compute=compute)
    with tempfile.TemporaryDirectory() as folder:
        output = joined().bcast(folder)  # one folder for all ranks
        if given.get("ref_logps"):
            given["ref_logps"] = f"{output}/logps.safetensors"
        options = PAIRS | {"output": f"{output}/out"} | given
        if sft:
            records = [{"instruction": r["i_chosen"], "response": r["r_chosen"]} for r in read_records("example")]
            trainer = jpo.SFTTrainer(lm, records, jpo.SFTConfig(**options))
        else:
            trainer = jpo.PreferenceTrainer(
                lm, "example", jpo.PreferenceConfig(**options), "example" if evaluated else None
            )
        with (
            contextlib.nullcontext() if given.get("loss") == "rpo" else hidden_bar()
        ):  # what is shown computes a pair too
            history = trainer.train()
        samples = Path(output, "out", "samples.jsonl")
        drawn = joined().bcast(samples.read_text() if joined().root and samples.exists() else None)
    rows = {key: values for key, values in history.items() if key not in TIMES}
    return hashlib.sha256(lm.trainable.params.tobytes()).hexdigest(), rows, drawn


def main(output):
    found = {name: run(changes, "float32") for name, changes in CASES.items()}
    known = {name for name, _, why in jpo._core.compute_types() if why is None}
    for compute in COMPUTES:
        if compute in known:
            found[f"adapter, {compute}"] = run({}, compute)
            found[f"full, {compute}"] = run(CASES["sft full"], compute)
    if joined().root:
        with open(output, "w", encoding="utf-8") as file:
            json.dump({"ranks": announced() or 1, "cases": found}, file)


if __name__ == "__main__":
    main(sys.argv[1])
