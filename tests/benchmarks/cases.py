"""The cases: what is run, what bounds it, and the goals it has to meet. Who runs in them stands with the
contestants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from . import work
from .contestants import Entry
from .contestants.yardsticks import BANDWIDTH, SGEMM

JPO = "jpo, float32"


@dataclass(frozen=True)
class Goal:
    """`figure` of entry `of` (kinds in figures.py) against `bound`. `to`: the peer; "torch*" is the best whose label
    begins so (patterns of fnmatch)."""

    text: str
    figure: str
    bound: float
    of: str = JPO
    to: str = ""
    at_most: bool = False

    def against(self, label: str) -> bool:
        """Whether `label` is (one of) the goal's peers."""
        return fnmatchcase(label, self.to)


@dataclass(frozen=True)
class Case:
    """`build` writes the work (units and flops of each turn among it); the yardstick turns flops into seconds."""

    name: str
    title: str
    unit: str
    build: Callable[[work.Context], dict[str, Any]]
    goals: tuple[Goal, ...] = ()
    yardstick: Entry = SGEMM
    group: str = ""  # "slow": not with --quick; "growth": with --growth
    ours: str = JPO
    kind: str = "speed"  # or "seconds", "accuracy", "growth"

    def compared(self, ours: str, peer: str) -> bool:
        """Whether the table or a goal sets the two side by side."""
        return ours == self.ours or any(goal.of == ours and goal.against(peer) for goal in self.goals)

    def yardstick_text(self, rate: float | None, outcome: dict[str, Any]) -> str:
        """What was measured, for the reader."""
        if rate is None:
            return outcome["note"] or "not measured"
        if self.yardstick is BANDWIDTH:
            return f"{rate / 1e9:.1f} GB/s"
        return f"{rate / 1e9:.0f} GF/s ({outcome['turns'][0]['blas']})"


def share(percent: float, of: str = JPO) -> Goal:
    """At least so much of the limit."""
    return Goal(f">= {percent:.0f} % of the limit", "share", percent / 100, of)


def times(factor: float, to: str, of: str = JPO, named: str = "") -> Goal:
    """At least so many times as fast as a peer."""
    return Goal(f">= {factor:g} times {named or to}", "ratio", factor, of, to)


def at_most(text: str, figure: str, bound: float, of: str = JPO, to: str = "") -> Goal:
    """A figure that must not exceed its bound."""
    return Goal(f"{text} <= {bound:g}", figure, bound, of, to, at_most=True)


PREFERENCE = (
    share(78),
    Goal(">= 1.17 tokens/s per GF/s of sgemm", "per_yardstick", 1.17),
    times(10, "TRL, float32"),
    times(5, "TRL, float32, tcmalloc"),
    times(2.2, "packed torch loop, float32, tcmalloc"),
    at_most("peak GB", "peak_gb", 1.1),
    times(1.3, "jpo, float32 by OpenBLAS", "jpo, int16"),
    at_most("memory against float32's", "memory_ratio", 1.0, "jpo, int16", JPO),
    times(1.8, "jpo, float32 by OpenBLAS", "jpo, bfloat16"),
    times(10, "TRL, as installed", "jpo, bfloat16"),
    times(5, "TRL, bfloat16, tcmalloc", "jpo, bfloat16"),
    times(4, "packed torch loop, bfloat16, tcmalloc", "jpo, bfloat16"),
    times(3, JPO, "jpo, bfloat16"),
    times(2.2, JPO, "jpo, bfloat16x2"),
    times(1.6, JPO, "jpo, bfloat16x3"),
)
SHARED = at_most("time / rows, shared against not", "sharing", 1.1, to="jpo, float32, nothing shared")
LONG = (share(75), times(15, "TRL, float32"), times(8, "TRL, float32, tcmalloc"), SHARED)
LINEAR = (
    times(0.9, "bare sgemm"),
    at_most("GB more for 4 times the rows", "added_gb", 0.1),
    times(1, "torch chunked*", named="torch's best chunked"),
    times(1, "Liger*", named="Liger"),
)
INT16 = times(1.6, "jpo, float32 by OpenBLAS", "jpo, int16")

CASES = [
    Case("logps", "log-likelihoods of given logits [1024, 49152]", "GB/s", lambda c: work.logits(c, False),
         (share(60), times(2.5, "torch*", named="torch's best")), BANDWIDTH),
    Case("logps-gradient", "their gradient in place (one read counted)", "GB/s", lambda c: work.logits(c, True),
         (times(4, "torch*", named="torch's best"),), BANDWIDTH),
    Case("linear-logps-49152", "linear_logps, hidden 576, vocabulary 49152", "GF/s", lambda c: work.linear(c, 49152),
         LINEAR),
    Case("linear-logps-262144", "linear_logps, hidden 576, vocabulary 262144", "GF/s",
         lambda c: work.linear(c, 262144), LINEAR),
    Case("preference-8", "LoRA preference step, 8 pairs, reference included", "tokens/s",
         lambda c: work.preference(c, 8), PREFERENCE),
    Case("preference-8-cached", "the same with cached reference", "tokens/s",
         lambda c: work.preference(c, 8, cached=True),
         (Goal(">= 1.65 tokens/s per GF/s of sgemm", "per_yardstick", 1.65),)),
    Case("preference-4", "LoRA preference step, 4 pairs", "tokens/s", lambda c: work.preference(c, 4), (share(75),)),
    Case("preference-1", "LoRA preference step, 1 pair", "tokens/s", lambda c: work.preference(c, 1), (share(60),)),
    Case("long-prompts", "TL;DR-shaped pairs, 2 a step", "tokens/s", lambda c: work.long_prompts(c, 2), LONG),
    Case("joint-reuse", "16 joint pairs, each (I, R) in 4 of them", "tokens/s", work.joint_reuse, LONG),
    Case("sft-full", "full fine-tuning step, packed to 1024 tokens", "tokens/s", work.full_tuning,
         (share(80), times(1.5, "torch*float32*", named="torch's best in float32"),
          times(1.5, "torch*", "jpo, bfloat16", "torch's best"))),
    Case("score-512", "scoring 512 tokens, forward only", "tokens/s", lambda c: work.text_of_512(c, False),
         (share(85), times(1.25, "transformers, float32*", named="torch's best in float32"),
          times(1.25, "transformers*", "jpo, bfloat16", "torch's best"), INT16)),
    Case("prompt-512", "prompt of 512 tokens", "tokens/s", lambda c: work.text_of_512(c, True),
         (share(80), times(3, "llama.cpp"), times(3, "llama.cpp", "jpo, int16"), INT16)),
    Case("generate-1", "generation, one stream", "tokens/s", lambda c: work.generation(c, 1),
         (times(1.5, "llama.cpp"), times(1.5, "llama.cpp", "jpo, int16"))),
    Case("generate-16", "generation, 16 samples of one prompt", "tokens/s", lambda c: work.generation(c, 16),
         (times(3, "transformers*", named="transformers' best"), times(4, "jpo, float32, one stream"),
          times(3, "transformers*", "jpo, int16", "transformers' best"), times(4, "jpo, int16, one stream", "jpo, int16"))),
    Case("start-import", "start: import", "s", lambda c: work.start(c, False), (at_most("seconds", "figure", 0.2),),
         kind="seconds"),
    Case("start-load", "start: load", "s", lambda c: work.start(c, True), (at_most("seconds", "figure", 1.0),),
         kind="seconds"),
    Case("accuracy", "error of D over 32 pairs and of gradients, against jpo's float32", "mean absolute error of D",
         work.accuracy, (
             at_most("mean error of D", "figure", 0.02, "jpo, int16"),
             at_most("of autocast's", "error_ratio", 1 / 15, "jpo, int16", "torch, bfloat16 autocast"),
             at_most("worst gradient error", "gradient", 5e-3, "jpo, int16"),
             at_most("of autocast's", "error_ratio", 0.5, "jpo, bfloat16", "torch, bfloat16 autocast"),
             at_most("mean error of D", "figure", 0.01, "jpo, bfloat16x2"),
             at_most("mean error of D", "figure", 0.001, "jpo, bfloat16x3"),
         ), kind="accuracy"),
    Case("llama-1b", "LoRA preference step, 8 pairs, 1.07 billion random bfloat16 weights", "tokens/s", work.llama_1b, (
        times(2, "packed torch loop, bfloat16*", "jpo, bfloat16", "the packed loop's best in bfloat16"),
        times(1.3, "packed torch loop, bfloat16*", "jpo, bfloat16x2", "the packed loop's best in bfloat16"),
    ), group="slow"),
    Case("mistral-7b", "LoRA step on q, k, v at Mistral-7B's shape, Q4_0, 2 pairs of 512 tokens", "tokens/s",
         work.mistral, (
             at_most("peak GB", "peak_gb", 8.0),
             times(4, "jpo, float32", "jpo, bfloat16"), at_most("peak GB", "peak_gb", 8.0, "jpo, bfloat16"),
         ), group="slow"),
    *(
        Case(f"growth-{axis}", f"growth with {axis}", "s", lambda c, axis=axis: work.growth(c, axis), (),  # type: ignore[misc]
             group="growth", kind="growth")
        for axis in ("length", "vocabulary", "batch", "width", "threads")
    ),
]  # fmt: skip
