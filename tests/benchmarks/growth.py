"""Training over many machines, simulated: python -m tests.benchmarks.growth --nodes 8 64 512 --tokens-per-second 5.5

The dealing of pairs is the real one (jpo.parallel.dealing) on random lengths; a node's speed is the measured one of a
7B model on 2 cores, its network 10 Gbit/s with 0.2 ms (jpo.parallel.cost), exchange and backward do not overlap. Prints
the table of .github/docs/how-to/beyond-one-machine.md: where balance, traffic and latency begin to cost.
"""

from __future__ import annotations

import argparse
import time
from array import array
from dataclasses import dataclass

import numpy as np

from jpo.data.batches import forest_rows
from jpo.data.encoding import Encoded
from jpo.parallel import cost
from jpo.parallel.dealing import deal
from jpo.parallel.team import default_slots

VALUES = 18_874_368 // 4  # a rank-8 adapter of Mistral-7B on q, k, v, in float32
SPEED = 5.5  # tokens/s of a node, measured: Mistral-7B's shape, Q4_0, a step of training (tests/benchmarks/README.md)
PAIRS = 4  # of a node and step
ALL = 1_000_000  # pairs of a pass
STEPS = 4  # that are dealt for a mean


@dataclass(frozen=True)
class Row:
    """Nodes, pairs of a step, and of its seconds what computing, the exchange and the dealing (on one core) take."""

    nodes: int
    pairs: int
    step: cost.StepCost
    alone: float  # seconds of the step on one node
    dealing: float

    @property
    def efficiency(self) -> float:
        """Of the nodes together, the dealing counted."""
        return self.alone / (self.nodes * (self.step.seconds + self.dealing))

    @property
    def days(self) -> float:
        """Days of a pass over all pairs."""
        return ALL / self.pairs * (self.step.seconds + self.dealing) / 86400


def random_pairs(count: int, generator: np.random.Generator) -> list[tuple[Encoded, Encoded]]:
    """Pairs of two responses to one prompt: 320 rows on average, from 64 to 576."""

    def tokens(least: int, most: int) -> array[int]:
        return array("i", generator.integers(0, 32000, int(generator.integers(least, most + 1))).tolist())

    prompts = [tokens(32, 192) for _ in range(count)]
    return [(Encoded(prompt, tokens(16, 192)), Encoded(prompt, tokens(16, 192))) for prompt in prompts]


def simulate(nodes: int, speed: float, steps: int = STEPS, seed: int = 0) -> Row:
    """A step of PAIRS pairs a node, the mean of `steps`."""
    generator = np.random.default_rng(seed)
    slots = default_slots(nodes)
    records = [random_pairs(PAIRS * nodes, generator) for _ in range(steps)]
    before = time.process_time()
    deal(records[0], slots)
    dealing = time.process_time() - before
    alone = sum(map(forest_rows, records)) / steps / speed
    found = cost.step_cost(records, slots, nodes, alone, VALUES, cost.TEN_GBIT)
    return Row(nodes, PAIRS * nodes, found, alone, dealing)


def main() -> None:
    """The table, for nodes as measured and for those that are 100 times as fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--tokens-per-second", type=float, default=SPEED)
    options = parser.parse_args()
    print(
        "| nodes | pairs a step | time of a step | exchange | dealing | efficiency | nodes 100 times as fast | a pass |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for nodes in options.nodes:
        row, fast = (simulate(nodes, options.tokens_per_second * factor) for factor in (1, 100))
        print(
            f"| {nodes} | {row.pairs} | {row.step.seconds:.0f} s | {row.step.exchange:.2f} s | {row.dealing:.2f} s | "
            f"{100 * row.efficiency:.0f} % | {100 * fast.efficiency:.0f} % | {row.days:.1f} days |"
        )


if __name__ == "__main__":
    main()
