"""python -m tests.hostile.interrupts [--trials 200] [--only NAME ...] [--model smollm2-135m] [--seconds S] [--log FILE]

How soon Ctrl-C is answered in each public operation that takes long: seconds from the signal to the end of the call,
over trials that are interrupted at random moments; median, 99th percentile, longest. Exit status 1 where a 99th
percentile is above 250 ms. On a busy machine the scheduler is measured, not jpo.
With --log each wait is a line of that file, and a run goes on from those that stand there: the sweep may be taken in
pieces, operation by operation or ended at any moment.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np

import jpo
from jpo import export
from jpo.data.readers import read_records
from jpo.feedback.pairs import conditional_candidates
from tests.interrupted import alarm

GOAL = 0.25  # seconds
LATEST = 0.15  # the signal comes within this time of the call
AGAIN = 1.0  # seconds until it comes again: Python drops an exception that is raised in a callback or in __del__


def waited(call, delay):
    """Seconds from the signal to the call's end; a call that ended before is made again."""
    own, between, over = sys._getframe(), [], False

    def interrupt(_, frame):
        if not over and frame is not own and frame.f_code is not code:  # the call is at work
            raise KeyboardInterrupt
        between.append(frame)  # it has just ended: an exception here would leave by a way of its own

    code = interrupt.__code__

    due = time.monotonic() + delay
    with alarm(interrupt, delay, AGAIN):
        try:
            while not between:
                call()
        except KeyboardInterrupt:
            pass
        finally:
            over = True
    return time.monotonic() - due


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


def measured(make, trials, seconds=float("inf"), before=(), told=lambda wait: None):
    """Sorted waits of the trials, as many as fit into `seconds`, those of `before` among them; each new one is told."""
    waits, end = list(before), time.monotonic() + seconds
    call = make() if len(waits) < trials else None
    while len(waits) < trials and (time.monotonic() < end or not waits):
        delay = random.Random(len(waits)).uniform(0.002, LATEST)
        waits.append(waited(call, delay))
        told(waits[-1])
    return sorted(waits)


class Log:
    """Waits in a file, one JSON line [model, operation, seconds] each; without a path none are kept."""

    def __init__(self, path, model):
        self.path, self.model = path, model

    def waits(self, name):
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path and self.path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [seconds for model, operation, seconds in rows if (model, operation) == (self.model, name)]

    def add(self, name, seconds):
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps([self.model, name, round(seconds, 6)]) + "\n")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.interrupts", description=__doc__.split("\n\n")[1])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of one operation at most")
    parser.add_argument("--only", nargs="*", help="names of operations")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--log", type=Path, help="keep the waits here, and go on from those that stand here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    late, log = [], Log(arguments.log, arguments.model)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(open(os.devnull, "w")):
        for name, make in operations(arguments.model, Path(scratch)).items():
            if arguments.only and name not in arguments.only:
                continue
            known, told = log.waits(name)[: arguments.trials], partial(log.add, name)
            waits = measured(make, arguments.trials, arguments.seconds, known, told)
            p99 = waits[min(len(waits) - 1, int(0.99 * len(waits)))]
            shown = f"median {waits[len(waits) // 2]:.3f} s, p99 {p99:.3f} s, longest {waits[-1]:.3f} s"
            print(f"{name}: {len(waits)} trials, {shown}", flush=True)
            late += [name] if p99 > GOAL else []
    sys.exit(f"later than {GOAL} s: {', '.join(late)}" if late else 0)


if __name__ == "__main__":
    main()
