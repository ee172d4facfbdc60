"""One LoRA step of jpo at growing sizes, each size in a process of its own; sizes.py names the models."""

from __future__ import annotations

from typing import Any

from . import Variant, contestant

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
VOCABULARIES = (4096, 16384, 65536, 262144)
SEQUENCES = (2, 4, 8, 16, 32)
WIDTHS = (256, 512, 1024, 2048)


@contestant(
    "sequence length",
    enters=("growth-length",),
    variants=tuple(Variant(str(size), {"length": size}) for size in LENGTHS),
    gigabytes=2.5,
)
def grow_length(work: Any, turns: Any, length: int) -> None:
    """One sequence, its second half scored."""
    step(work["model"], 1, length, turns)


@contestant(
    "vocabulary",
    enters=("growth-vocabulary",),
    variants=tuple(Variant(str(size), {"size": size}) for size in VOCABULARIES),
)
def grow_vocabulary(work: Any, turns: Any, size: int) -> None:
    """Random models that differ in the vocabulary alone."""
    step(work["models"][str(size)], 4, 256, turns)


@contestant(
    "sequences", enters=("growth-batch",), variants=tuple(Variant(str(size), {"count": size}) for size in SEQUENCES)
)
def grow_batch(work: Any, turns: Any, count: int) -> None:
    """More sequences of 128 tokens a step, cut into micro-batches of 1024 rows."""
    step(work["model"], count, 128, turns)


@contestant("width", enters=("growth-width",), variants=tuple(Variant(str(size), {"size": size}) for size in WIDTHS))
def grow_width(work: Any, turns: Any, size: int) -> None:
    """Random models of two layers, MLP 3 times as wide."""
    step(work["models"][str(size)], 2, 256, turns)


@contestant(
    "threads",
    enters=("growth-threads",),
    variants=tuple(Variant(str(count), {"count": count}) for count in (1, 2, 4, 8, 16)),
)
def grow_threads(work: Any, turns: Any, count: int) -> None:
    """The same step on fewer threads."""
    import os

    from jpo import _core

    from . import LeftOut

    if count > len(os.sched_getaffinity(0)):
        raise LeftOut("more than this machine's processors")
    _core.set_num_threads(count)
    step(work["model"], 8, 128, turns)


def step(model: str, count: int, length: int, turns: Any) -> None:
    """Forward and backward of `count` sequences of `length` random tokens with LoRA on all linear layers."""
    import numpy as np

    import jpo
    from jpo.data.forest import build_forest

    lm = jpo.load(model)
    lm.add_lora(target_modules="all-linear")
    ids = np.random.default_rng(0).integers(3, lm.config["vocab_size"], (count, length)).tolist()
    at_once = max(1, 1024 // length)
    forests = [
        build_forest([(one[: length // 2], one[length // 2 :]) for one in ids[start : start + at_once]])
        for start in range(0, count, at_once)
    ]

    def repetition(turn: int) -> dict[str, Any]:
        for forest in forests:
            scores = lm.forward(forest, keep=True)
            lm.backward(np.full(len(scores.logps), -1.0 / count))
        return {"rows": count * length, "units": count * length}

    turns.loop(repetition)
