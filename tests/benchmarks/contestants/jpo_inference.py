"""jpo scoring, prompting, generating, starting."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from . import LeftOut, Variant, contestant
from .jpo_preference import COMPUTES, load


@contestant("jpo", enters=("score-512",), variants=COMPUTES, gigabytes=0.6)
def jpo_score(work: Any, turns: Any, **how: Any) -> None:
    """Log-likelihoods of every token but the first."""
    lm = load(work, **how)
    ids = work["ids"]
    turns.loop(lambda turn: {"logp": float(lm.sequence_logps_ids([(ids[:1], ids[1:])])[0])})


@contestant("jpo", enters=("prompt-512",), variants=COMPUTES, gigabytes=0.6)
def jpo_prompt(work: Any, turns: Any, **how: Any) -> None:
    """The prompt and one sampled token."""
    lm = load(work, **how)

    def repetition(turn: int) -> None:
        lm.generate([work["text"]], temperature=0.0, max_new_tokens=1)

    turns.loop(repetition)


@contestant(
    "jpo",
    enters=("generate-1", "generate-16"),
    gigabytes=0.8,
    variants=(
        Variant("float32"),
        Variant("int16", {"compute": "int16"}),
        Variant("float32, one stream", {"n": 1}, only=("generate-16",)),
        Variant("int16, one stream", {"n": 1, "compute": "int16"}, only=("generate-16",)),
    ),
)
def jpo_generate(work: Any, turns: Any, n: int = 0, **how: Any) -> None:
    """Tokens after each stream's first; n samples of one prompt."""
    lm = load(work, **how)
    streams = n or work["streams"]

    def repetition(turn: int) -> dict[str, Any]:
        times: list[float] = []
        lm.generate(
            [work["prompt"]],
            n=streams,
            temperature=work["temperature"],
            max_new_tokens=work["new_tokens"],
            on_token=lambda prompt, sample, token: times.append(time.perf_counter()),
        )
        if len(times) == streams:
            raise LeftOut("every stream ended at its first token; another model or prompt is needed")
        return {"seconds": times[-1] - times[streams - 1], "units": len(times) - streams}

    turns.loop(repetition)


def _started(code: str) -> float:
    """Seconds that the code itself reports from a fresh interpreter; median of 3."""
    command = [
        sys.executable,
        "-c",
        f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)",
    ]
    return statistics.median(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)
    )


@contestant("jpo", enters=("start-import", "start-load"), variants=(Variant("float32"),), gigabytes=0.5)
def jpo_start(work: Any, turns: Any) -> None:
    """`import jpo`, or the load behind it, in fresh interpreters."""
    code = "import jpo"
    if work["load"]:
        code = f"import jpo; start = time.perf_counter(); jpo.load({work['model']!r})"
    turns.loop(lambda turn: {"seconds": _started(code)})


@contestant("transformers", enters=("start-import", "start-load"), needs=("transformers", "torch"), gigabytes=1.5)
def transformers_start(work: Any, turns: Any) -> None:
    """The same of transformers' causal language models."""
    code = "from transformers import AutoModelForCausalLM"
    if work["load"]:
        code += f"; start = time.perf_counter(); AutoModelForCausalLM.from_pretrained({work['hf']!r})"
    turns.loop(lambda turn: {"seconds": _started(code)})
