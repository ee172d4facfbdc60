"""python -m tests.benchmarks --data FILE [--model NAME]: speed of a LoRA preference step (r 8 on all linear layers, 8 pairs,
response scope, reference included) in each compute type, beside the machine's sgemm in the same run. Peers: not yet."""

import argparse
import platform
import resource
import statistics
import time

import numpy as np

import jpo
from jpo import _core
from jpo.data import preference_pairs, read_records

PAIRS, STEPS = 8, 6


def sgemm_gflops() -> float:
    """Median of 12 float32 2048^3 products by NumPy on all cores."""
    a, seconds = np.random.default_rng(0).random((2048, 2048), dtype=np.float32), []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def tokens_per_second(model: str, data: str, compute: str) -> float:
    """Median over steps after the first; tokens as TRL counts them."""
    config = jpo.PreferenceConfig(
        scope="response", batch_size=PAIRS, target_modules="all-linear", max_length=512, max_prompt_length=256
    )
    trainer = jpo.PreferenceTrainer(jpo.load(model, compute=compute), preference_pairs(read_records(data)), config)
    speeds = []
    for step in range(STEPS):
        places = [(PAIRS * step + i) % len(trainer.pairs) for i in range(PAIRS)]
        start = time.perf_counter()
        trainer.step(places, step)
        speeds.append(sum(trainer.pairs[i].tokens for i in places) / (time.perf_counter() - start))
    return statistics.median(speeds[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--data", default="example")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--compute", nargs="*", default=["float32", "int16", "bfloat16"])
    arguments = parser.parse_args()
    peak = sgemm_gflops()
    info = _core.system_info()
    print(f"{platform.machine()}, {info['threads']} threads, {info['isa']}; NumPy sgemm {peak:.0f} GF/s")
    for compute in arguments.compute:
        try:
            speed = tokens_per_second(arguments.model, arguments.data, compute)
        except jpo.JpoError as error:
            print(f"{compute}: {error}")
            continue
        gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{compute}: {speed:.0f} tokens/s, {speed / peak:.2f} per GF/s of sgemm; peak memory so far {gigabytes:.2f} GB"
        )


main()
