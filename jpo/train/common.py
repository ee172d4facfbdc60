"""What the trainers share before and around a run: settings that the model brings, its length, its estimates.

Knows configurations and the model; never pairs, examples or losses.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jpo.data.cache import CachedRecords, Recipe
from jpo.data.encoding import Encoded, EncodedPair
from jpo.data.forest import Forest
from jpo.data.report import Report
from jpo.data.store import Kind
from jpo.data.templates import Template
from jpo.errors import DataError, JpoError
from jpo.memory import free_bytes
from jpo.model import LanguageModel
from jpo.profiling import compute_costs
from jpo.train import memory
from jpo.train.config import DEFAULT_WARMUP, TrainingConfig

SETTINGS_VERSION = 2  # of jpo_config.json; in those without one, training.template "paper" is what "spaced" is now
C = TypeVar("C", bound=TrainingConfig)


def adapter_settings(config: TrainingConfig, template: Template, lm: LanguageModel) -> dict[str, Any]:
    """What stands in jpo_config.json beside the adapter: sampling and evaluation read it."""
    own = {
        "version": SETTINGS_VERSION,
        "template": template.to_dict(),
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
    }
    training = config.to_dict() | {"template": template.name}
    return own | {"truncation": config.truncation, "compute": lm.compute, "training": training}


def check_arguments(lm: Any, config: Any, expected: type[TrainingConfig]) -> None:
    """TypeError where a trainer is given something else than a loaded model and a config of its own class."""
    if not isinstance(lm, LanguageModel):
        raise TypeError(
            f"lm: expected a model of jpo.load(...), got {type(lm).__name__} {lm!r:.60}; pass jpo.load(...)"
        )
    if config is not None and not isinstance(config, expected):
        raise TypeError(f"config: expected a {expected.__name__}, got {type(config).__name__}")


def check_left(given: Sequence[Any], report: Report) -> None:
    """DataError, with the report's reasons, where no record is left to train on."""
    if not given:
        raise DataError(f"no record is left to train on:\n{report}")


def ensure_adapter(lm: LanguageModel, config: TrainingConfig) -> None:
    """The adapter that the model carries, or a fresh one by the config."""
    if lm.trainable is None:
        lm.add_lora(**config.adapter_options(), seed=config.seed)


def settled(lm: LanguageModel, config: C) -> C:
    """The config with what the model brings in it, so that checkpoints hold a run to it: its compute type and storage,
    and the shape of the adapter that it carries. JpoError where the config asks for another compute type or storage.
    The model's passes keep from now on what the config's gradient_checkpointing says."""
    brought: dict[str, Any] = {"compute": lm.compute, "storage": lm.storage}
    for name, value in brought.items():
        asked = getattr(config, name)
        if asked not in (None, value) and not (name == "compute" and asked == "auto"):
            raise JpoError(
                f"{name}: the config says {asked!r}, but the model was loaded with {value!r}; "
                f"use jpo.load(..., {name}={asked!r})"
            )
    if lm.lora is not None:
        brought |= lm.lora.options()
    lm.set_recompute(config.gradient_checkpointing)
    return dataclasses.replace(config, **brought)


def probe(
    lm: LanguageModel,
    forests: Sequence[Forest],
    total: int,
    per_epoch: int,
    step: Callable[[], Any],
    needed: memory.Estimate,
) -> dict[str, Any]:
    """What a dry run says of `total` steps: rows and memory of the first one's forests by the plan, times by running
    it."""
    assert lm.trainable is not None
    seconds, costs = compute_costs(lm, step)
    lm.trainable.grads[:] = 0
    return {
        "steps": total,
        "steps_per_epoch": per_epoch,
        "rows_first_step": sum(forest.rows for forest in forests),
        "buffers_gb": round(max(lm.pass_bytes(forest, True) for forest in forests) / 2**30, 4),
        "step_seconds": round(seconds, 4),
        "total_seconds": round(seconds * total, 1),
        "trained_values": int(lm.trainable.params.size),
        "memory_gb": {name: round(count / 2**30, 4) for name, count in needed.parts().items()},
        "free_gb": round(free_bytes() / 2**30, 2),
        "step_seconds_by_compute": costs,
    }


def total_steps(config: TrainingConfig, per_epoch: int, default: int) -> int:
    """Optimizer steps that the config asks for."""
    if config.steps is not None:
        return config.steps
    return default if config.epochs is None else max(1, round(config.epochs * per_epoch))


def warmup_steps(config: TrainingConfig, total: int) -> int:
    """Steps of warm-up: as asked for, otherwise at most a tenth of the run."""
    return config.warmup_steps if config.warmup_steps is not None else min(DEFAULT_WARMUP, total // 10)


def quickest(work: Callable[[], Any], times: int = 2) -> float:
    """Seconds of the quickest of several runs: the first one allocates."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def recipe_of(kind: Kind, lm: LanguageModel, config: TrainingConfig) -> Recipe:
    """What makes tokens of a run's records."""
    longest = min(config.max_length, int(lm.config["max_position_embeddings"]))
    prompt = min(config.max_prompt_length, longest - 1)
    return Recipe(kind, lm.tokenizer, config.template, longest, prompt, config.truncation)


def tokens_of(record: Encoded | EncodedPair) -> int:
    """Tokens of all sequences of a record."""
    return record.tokens if isinstance(record, EncodedPair) else len(record)


def all_tokens(records: Sequence[Any]) -> int:
    """Tokens of all sequences of all records, before any sharing."""
    return records.all_tokens if isinstance(records, CachedRecords) else sum(map(tokens_of, records))


def largest(records: Sequence[Any], count: int) -> list[int]:
    """Tokens of the `count` records that have the most."""
    if isinstance(records, CachedRecords):
        return records.longest(count)
    return sorted(map(tokens_of, records), reverse=True)[:count]


def named_sets(given: Any) -> dict[str, Any]:
    """Evaluation data by name: a mapping as it is, other data as the set "", None as no set."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {"": given}
