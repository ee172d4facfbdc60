"""python -m tests.hostile.interrupts [--trials 200] [--only NAME ...] [--model smollm2-135m] [--seconds S]

How soon Ctrl-C is answered in each public operation that takes long: seconds from the signal to the end of the call,
over trials that are interrupted at random moments; median, 99th percentile, longest. Exit status 1 where a 99th
percentile is above 250 ms. On a busy machine the scheduler is measured, not jpo.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import jpo
from jpo import export
from jpo.data.readers import read_records
from jpo.feedback.pairs import conditional_candidates

GOAL = 0.25  # seconds
LATEST = 0.15  # the signal comes within this time of the call
AGAIN = 1.0  # seconds until it comes again: Python drops an exception that is raised in a callback of the collector


def waited(call, delay):
    """Seconds from the signal to the call's end; a call that ended before is made again."""
    due = time.monotonic() + delay
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, delay, AGAIN)
    try:
        while True:
            call()
    except KeyboardInterrupt:
        return time.monotonic() - due
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kernels(scale=1.0):
    """{name: call} of the kernels over given arrays."""
    rng, rows = np.random.default_rng(0), int(2000 * scale)
    z, labels = np.zeros((1, rows, 50_000), np.float32), rng.integers(0, 50_000, (1, rows))
    hidden, weight = np.zeros((1, rows, 1024), np.float32), np.zeros((40_000, 1024), np.float32)
    targets, c = rng.integers(0, 40_000, (1, rows)), np.ones(1)
    return {
        "sequence_logps": lambda: jpo.sequence_logps(z, labels),
        "sequence_logps_grad": lambda: jpo.sequence_logps_grad(z, labels, c, out=z),
        "linear_logps": lambda: jpo.linear_logps(hidden, weight, targets),
        "linear_logps_grad": lambda: jpo.linear_logps_grad(hidden, weight, targets, c),
    }


def trained(model, rows):
    """A call that trains; each interrupted run ends as a person's does, without a checkpoint."""
    lm = jpo.load(model)
    lm.add_lora(r=4)
    config = jpo.PreferenceConfig(batch_size=8, steps=1000, warmup_steps=0, save_steps=0)
    trainer = jpo.PreferenceTrainer(lm, rows, config)
    return trainer.train


def operations(model, folder, scale=1.0):
    """{name: call}, made one by one as they are asked for: each holds its own model and data."""
    rows = [{"prompt": f"Say {n}.", "chosen": f"one {n} " * 20, "rejected": "two " * 20} for n in range(40)]

    def scores():
        lm, text = jpo.load(model), ["word " * 120] * 8
        return lambda: lm.sequence_logps(text, text, scope="joint")

    def texts():
        lm, text = jpo.load(model), "The quick brown fox, 12 of them. " * int(600_000 * scale)
        return lambda: lm.tokenizer.encode(text)

    def draws():
        lm = jpo.load(model)
        return lambda: lm.generate(["Name a colour."] * 8, max_new_tokens=200)

    def merged():
        lm = jpo.load(model)
        lm.add_lora(r=4)
        lm.save_adapter(str(folder / "adapter"))
        return lambda: export.merge(
            model, folder / "adapter", folder / "m.gguf", format="gguf", type="q4_k_m", overwrite=True
        )

    def built():
        path = folder / "samples.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for n in range(int(50_000 * scale)):
                file.write(json.dumps({"instruction": f"Say {n // 4}.", "output": f"answer {n}"}) + "\n")
        return lambda: conditional_candidates(read_records(str(path)), 4, 0)

    kernel = kernels(scale)
    return {
        "train": lambda: trained(model, rows),
        "generate": draws,
        "score": scores,
        "load": lambda: lambda: jpo.load(model),
        "tokenize 20 MB": texts,
        "merge": merged,
        "pairs": built,
        **{name: (lambda call=call: call) for name, call in kernel.items()},
    }


def measured(call, trials, seconds=float("inf"), seed=0):
    """Sorted waits of the trials, as many as fit into `seconds`."""
    rng, end, waits = random.Random(seed), time.monotonic() + seconds, []
    while len(waits) < trials and (time.monotonic() < end or not waits):
        waits.append(waited(call, rng.uniform(0.002, LATEST)))
    return sorted(waits)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.interrupts", description=__doc__.split("\n\n")[1])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of one operation at most")
    parser.add_argument("--only", nargs="*", help="names of operations")
    parser.add_argument("--model", default="smollm2-135m")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    late = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(open(os.devnull, "w")):
        for name, make in operations(arguments.model, Path(scratch)).items():
            if arguments.only and name not in arguments.only:
                continue
            waits = measured(make(), arguments.trials, arguments.seconds)
            p99 = waits[min(len(waits) - 1, int(0.99 * len(waits)))]
            shown = f"median {waits[len(waits) // 2]:.3f} s, p99 {p99:.3f} s, longest {waits[-1]:.3f} s"
            print(f"{name}: {len(waits)} trials, {shown}", flush=True)
            late += [name] if p99 > GOAL else []
    sys.exit(f"later than {GOAL} s: {', '.join(late)}" if late else 0)


if __name__ == "__main__":
    main()
