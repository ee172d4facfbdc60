"""What a study will ask, sample and train, and how long that takes here: for the dry run, before anything is written.

Counts come from the settings and the lengths of the given texts; times from the number of the model's weights and the
speed of products that is measured on this machine (0.2 s). All of it is about: how many verdicts are decided, and how
long responses get, is known afterwards. Knows settings, lengths and speeds; runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jpo.data.readers import read_records
from jpo.data.records import candidates, instruction_of
from jpo.data.texts import plain
from jpo.errors import JpoError
from jpo.evaluate.winrate import text_length
from jpo.study.config import WORLD, StudyConfig
from jpo.study.stages import Run
from jpo.train.config import DEFAULT_STEPS

DECIDED = 2 / 3  # of the verdicts: what is assumed
_CHARACTERS = 4.0  # of a token, about, to models of all makers
_OVERHEAD = 1.4  # attention, norms and all that is no product with a weight
_WORLD_CHARACTERS = 30  # of a text of the embedded world
_REPLY_TOKENS = 2
_READ = 200  # records whose lengths are looked at


@dataclass
class Estimate:
    """Questions by stage (two for each comparison), their tokens, tokens sampled and trained on here, seconds by
    kind."""

    questions: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    sampled: int = 0
    trained: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    gflops: float = 0.0  # measured now, of products of many rows

    @property
    def completion_tokens(self) -> int:
        """Of all replies."""
        return _REPLY_TOKENS * sum(self.questions.values())


def estimate(config: StudyConfig, runs: Sequence[Run], done: Sequence[str]) -> Estimate:
    """Of a study whose stages `done` (by name) have nothing left to do. DataError for given files that cannot be
    read."""
    lengths = _lengths(config)
    found = Estimate()
    conditional, joint = _candidates(config)
    if "sample candidates" not in done and not config.conditional_pairs:
        found.sampled += 2 * conditional * lengths["response_tokens"]
    asked = {
        "conditional feedback": 0 if config.conditional_pairs else 2 * conditional,
        "joint feedback": 0 if config.joint_pairs else 2 * joint,
        "evaluation": 0,
        "AlpacaEval": 0,
    }
    for run in runs:
        if f"sample {run.name}" not in done:
            found.sampled += lengths["test"] * len(config.temperatures) * lengths["response_tokens"]
        if f"judge {run.name}" not in done:
            asked["evaluation"] += 2 * lengths["test"] * len(config.temperatures)
        if config.alpaca_eval and run.main:
            found.sampled += lengths["alpaca"] * lengths["response_tokens"]
            asked["AlpacaEval"] += 2 * lengths["alpaca"]
        if run.method != "sft" and f"train {run.name}" not in done:
            found.trained += _trained(config, run, lengths)
    found.questions = {name: count for name, count in asked.items() if count and name not in done}
    found.prompt_tokens = _prompt_tokens(config, found.questions, lengths)
    _seconds(config, found, lengths, done)
    return found


def _candidates(config: StudyConfig) -> tuple[int, int]:
    """(conditional, joint) candidates that it takes to have as many decided as are wanted."""
    sizes = (
        (config.conditional_size or 0, config.candidates_size),
        (config.joint_size or 0, config.joint_candidates_size),
    )
    conditional, joint = (min(math.ceil(size / DECIDED), most or 4 * size) for size, most in sizes)
    return conditional, joint


def _lengths(config: StudyConfig) -> dict[str, int]:
    """Numbers of records, and mean lengths of their texts: {test, alpaca, instruction, response} in characters, and
    response_tokens."""
    if config.model == WORLD:
        own = {"instruction": _WORLD_CHARACTERS, "response": _WORLD_CHARACTERS, "alpaca": 0, "test": config.test_size}
        return own | {"response_tokens": config.max_new_tokens, "conditional": 0, "joint": 0}
    assert config.test_data
    tests = read_records(config.test_data)
    some = tests[:_READ]
    instruction = _mean([text_length(plain(instruction_of(row, row.where))) for row in some])
    response = _mean([text_length(row["gold_response"]) for row in some if row.get("gold_response")])
    tokens = min(config.max_new_tokens, max(1, math.ceil(response / _CHARACTERS)))
    return {
        "test": min(config.test_size, len(tests)),
        "alpaca": len(read_records(config.alpaca_eval)) if config.alpaca_eval else 0,
        "instruction": instruction,
        "response": int(tokens * _CHARACTERS),
        "response_tokens": tokens,
        "conditional": len(read_records(config.conditional_pairs)) if config.conditional_pairs else 0,
        "joint": len(read_records(config.joint_pairs)) if config.joint_pairs else 0,
    }


def _mean(values: Sequence[int]) -> int:
    return round(sum(values) / len(values)) if values else 0


def _trained(config: StudyConfig, run: Run, lengths: Mapping[str, int]) -> int:
    """Tokens of a run's steps, both sides of each pair."""
    options = config.train_options(run.method)
    sizes = {
        "conditional": config.conditional_size or lengths["conditional"],
        "joint": config.joint_size or lengths["joint"],
    }
    sizes["union"] = sizes["conditional"] + sizes["joint"]
    of = {"jpo_joint": "joint", "jpo_masked": "joint", "jpo_union": "union"}.get(run.method, "conditional")
    pairs = max(1, round(run.amount * sizes[of]))
    if run.share is not None:
        pairs = min(sizes["conditional"], sizes["joint"])
    count = options.steps * options.batch_size if options.steps else min(pairs, DEFAULT_STEPS * options.batch_size)
    if options.epochs is not None:
        count = round(options.epochs * pairs)
    elif run.epochs or (run.method == "jpo_union" and run.share is None and config.union == "epochs"):
        count = round(count * pairs / max(1, run.amount * sizes["conditional"]))
    longest = min(options.max_length, (lengths["instruction"] + lengths["response"]) / _CHARACTERS)
    return int(2 * count * longest)


def _prompt_tokens(config: StudyConfig, questions: Mapping[str, int], lengths: Mapping[str, int]) -> int:
    """Of all questions: the wording as it is, the texts by their mean lengths."""
    if config.judge == WORLD:
        return 0
    i, r = "i" * max(1, lengths["instruction"]), "r" * max(1, lengths["response"])
    forms = [
        {"instruction": i, "response_0": r, "response_1": r},
        {"instruction_0": i, "response_0": r, "instruction_1": i, "response_1": r},
    ]
    single, joint = (len(config.question.prompt(candidates([form])[0], False)) / _CHARACTERS for form in forms)
    return int(sum(count * (joint if name.startswith("joint") else single) for name, count in questions.items()))


def _weights(config: StudyConfig) -> int:
    """Values of the model's weights, out of its file's head; the embedded world's by its shape."""
    from jpo.formats import load_checkpoint
    from jpo.study import decoder

    if config.model == WORLD:
        tensors = decoder.random_decoder(config.seed, config.hidden_size, config.layers).tensors
    else:
        tensors = load_checkpoint(str(config.policy if config.policy and not config.sft_data else config.model)).tensors
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _seconds(config: StudyConfig, found: Estimate, lengths: Mapping[str, int], done: Sequence[str]) -> None:
    """Fills in the times: a forward pass takes two operations for each weight and token; training another one back and,
    for the reference, another one forth."""
    from jpo import _core

    try:
        weights = _weights(config)
        measure: Any = _core.measure_gflops
        wide, small = (
            max(float(measure(config.compute, 1536, 576, rows)) for _ in range(3)) * 1e9 for rows in (512, 32)
        )
    except (JpoError, OSError, NotImplementedError, ValueError):
        return  # an adapter alone, or a compute type that cannot run here: no time is better than a wrong one
    found.gflops = wide / 1e9
    forward = 2.0 * weights * _OVERHEAD
    if config.model == WORLD and "pre-train the decoder" not in done:
        first = config.pretrain_options()
        texts = int(config.pretrain.get("texts", 10_000))
        count = first.steps * first.batch_size if first.steps else (first.epochs or 3) * texts
        found.seconds["pre-training"] = 3 * forward * count * 2 * _WORLD_CHARACTERS / _CHARACTERS / wide
    if "fine-tune the SFT policy" not in done and (config.sft_data or config.model == WORLD) and not config.policy:
        options = config.sft_options()
        tokens = (lengths["instruction"] + lengths["response"]) / _CHARACTERS
        passes = options.epochs or 3
        count = options.steps * options.batch_size if options.steps else passes * config.sft_size
        found.seconds["fine-tuning"] = 3 * forward * count * tokens / wide
    found.seconds["sampling"] = forward * found.sampled / small
    found.seconds["preference training"] = 3 * forward * found.trained / wide
    if config.judge == "local":
        found.seconds["judging"] = forward * found.prompt_tokens / wide


def describe(found: Estimate, config: StudyConfig) -> list[str]:
    """Lines to print."""
    total = sum(found.questions.values())
    parts = ", ".join(f"{name} {count:,}" for name, count in found.questions.items())
    lines = [f"questions to the judge: about {total:,} ({parts or 'none left'}), if 2 of 3 verdicts are decided"]
    if config.judge == WORLD:
        lines.append("tokens of the judge: none, it is a formula")
    else:
        shown = f"about {found.prompt_tokens:,} of questions and {found.completion_tokens:,} of replies"
        lines.append(f"tokens of the judge: {shown}" + _cost(found, config))
    lines.append(f"tokens here: about {found.sampled:,} sampled, {found.trained:,} trained on")
    if found.seconds:
        each = ", ".join(f"{name} {_time(seconds)}" for name, seconds in found.seconds.items())
        whole = _time(sum(found.seconds.values()))
        lines.append(f"time here: about {whole} ({each}), at the {found.gflops:.0f} GF/s that products reach just now")
    else:
        lines.append("time here: not estimated, the model's weights cannot be counted without it")
    return lines


def _cost(found: Estimate, config: StudyConfig) -> str:
    if config.prompt_price is None and config.completion_price is None:
        return "; for their cost give prompt_price and completion_price"
    prices = (config.prompt_price or 0.0, config.completion_price or 0.0)
    cost = (found.prompt_tokens * prices[0] + found.completion_tokens * prices[1]) / 1e6
    return f"; cost about {cost:,.2f}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
