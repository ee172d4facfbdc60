"""What a training run takes of the memory, by counting, before anything is taken; and settings under which it would
fit.

Knows sizes of weights, adapters and passes; never records.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from jpo.data.forest import Forest
from jpo.errors import JpoError
from jpo.memory import free_bytes, size
from jpo.model import LanguageModel
from jpo.storage import Storage
from jpo.train.config import TrainingConfig

_LENGTH = 256  # of the advice to cut texts
_HEAD_COLUMNS = 1024  # logits that a trainable head keeps of each row at a time (JPO_HEAD_TILE)


@dataclass(frozen=True)
class Settings:
    """What decides the size of a run; `flags` say how the user gets it."""

    rows: int  # of the largest micro-batch
    longest: int  # tokens of the longest record, which is never cut
    recompute: bool
    storage: Storage
    full: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part of a run."""

    weights: int
    trained: int  # trained values and their gradients, float32
    optimizer: int  # AdamW's two moments
    activations: int  # of the largest micro-batch
    saving: int  # copies while a checkpoint or the result is written
    held: int  # of these, already taken

    @property
    def total(self) -> int:
        """Bytes of the whole run; a save and a pass never stand side by side, so the larger counts."""
        return self.weights + self.trained + self.optimizer + max(self.activations, self.saving)

    def parts(self) -> dict[str, int]:
        """Name -> bytes, as a table shows them."""
        named = {"weights": self.weights, "trained values and gradients": self.trained, "optimizer": self.optimizer}
        return {**named, "activations": self.activations, "while saving": self.saving, "together": self.total}


def largest_rows(lengths: list[int], batch_size: int, token_budget: int) -> tuple[int, int]:
    """(rows of the largest micro-batch at most, tokens of the longest record)."""
    ordered = sorted(lengths, reverse=True)
    longest = ordered[0] if ordered else 1
    return max(longest, min(token_budget, sum(ordered[:batch_size]))), longest


def settings_of(lm: LanguageModel, config: TrainingConfig, lengths: list[int]) -> Settings:
    """Those of a run; lengths: tokens of each record, all its sequences together."""
    rows, longest = largest_rows(lengths, config.batch_size, config.token_budget)
    full = bool(getattr(config, "full", False)) or lm.full
    return Settings(rows, longest, config.gradient_checkpointing, lm.storage, full)


def estimate(lm: LanguageModel, config: TrainingConfig, chosen: Settings) -> Estimate:
    """Counted from shapes; nothing is allocated."""
    weights = lm.stored_bytes(chosen.storage)
    mapped = chosen.storage in ("auto", "as-stored")  # pages of a file, given up under pressure: never held
    if chosen.full:
        values, weights = lm.values(), 0 if mapped else weights
    elif lm.trainable is not None and not lm.full:
        values = lm.trainable.params.size
    else:
        values = lm.adapter_size(**config.adapter_options()).values
    trained = 8 * values
    held = (0 if mapped or chosen.storage != lm.storage else weights) + (8 * values if lm.trainable is not None else 0)
    return Estimate(weights, trained, 8 * values, _activations(lm, config, chosen), 8 * values, held)


def _activations(lm: LanguageModel, config: TrainingConfig, chosen: Settings) -> int:
    """A pass with backward over `rows` rows, each scored: the engine's own plan, and the adapter's rows where it is not
    there yet. A micro-batch holds many records, none longer than the model's positions."""
    rows, most = chosen.rows, int(lm.config["max_position_embeddings"])
    zeros = np.zeros(rows, dtype=np.int32)
    ends = np.arange(rows, dtype=np.int32)
    none = np.zeros(0, dtype=np.int64)
    segments = np.array([[at, min(most, rows - at), -1, 0] for at in range(0, rows, most)], dtype=np.int32)
    forest = Forest(zeros, segments, ends, zeros, none, none, none)
    lm.set_recompute(chosen.recompute)
    try:
        planned = lm.pass_bytes(forest, True)
    finally:
        lm.set_recompute(config.gradient_checkpointing)
    if chosen.full:
        return planned + 4 * rows * _HEAD_COLUMNS
    if lm.lora is not None:
        return planned
    layers = 1 if chosen.recompute else int(lm.config["num_hidden_layers"])
    adapter = lm.adapter_size(**config.adapter_options())
    a_row = (adapter.ranks + adapter.magnitudes) * (layers + 1) + (_HEAD_COLUMNS if adapter.head else 0)
    return planned + 4 * rows * a_row


def _levers(chosen: Settings, lm: LanguageModel) -> Iterator[Settings]:
    """Single changes that take less, as Settings whose flags name them."""
    if not chosen.recompute:
        yield replace(chosen, recompute=True, flags=("--gradient-checkpointing",))
    if chosen.rows > chosen.longest:
        yield replace(chosen, rows=chosen.longest, flags=(f"--token-budget {chosen.longest}",))
    short = 2 * _LENGTH
    if chosen.longest > short:
        yield replace(chosen, rows=short, longest=short, flags=(f"--max-length {_LENGTH} --token-budget {short}",))
    if chosen.full:
        yield replace(chosen, full=False, flags=("an adapter instead of --full",))
    elif lm.stored_bytes("q8_0", must=False) < lm.stored_bytes(chosen.storage):
        yield replace(chosen, storage="q8_0", flags=("--storage q8_0",))


def _joined(chosen: Settings, changes: tuple[Settings, ...]) -> Settings:
    result = chosen
    for change in changes:
        changed = {name: getattr(change, name) for name in ("rows", "longest", "recompute", "storage", "full")
                   if getattr(change, name) != getattr(chosen, name)}  # fmt: skip
        result = replace(result, **changed, flags=result.flags + change.flags)
    return result


def advice(lm: LanguageModel, config: TrainingConfig, chosen: Settings, free: int, count: int = 3) -> list[str]:
    """Up to `count` settings that fit into `free` bytes, the fewest changes first, each with its estimate; where none
    does, the smallest there is."""
    levers = list(_levers(chosen, lm))
    fitting: list[str] = []
    used: list[set[str]] = []
    smallest: tuple[int, str] | None = None
    for together in range(1, len(levers) + 1):
        for changes in itertools.combinations(levers, together):
            joined = _joined(chosen, changes)
            needed = estimate(lm, config, joined)
            line = f"{' '.join(joined.flags)}: {size(needed.total)}"
            if smallest is None or needed.total < smallest[0]:
                smallest = (needed.total, line)
            if needed.total - needed.held > free or any(flags <= set(joined.flags) for flags in used):
                continue  # does not fit, or a part of it already does
            used.append(set(joined.flags))
            fitting.append(line)
            if len(fitting) == count:
                return fitting
    if not fitting and smallest is not None:
        return [f"none of the settings is small enough; the smallest is {smallest[1]}: take a smaller model"]
    return fitting


def check(lm: LanguageModel, config: TrainingConfig, lengths: list[int], free: int | None = None) -> Estimate:
    """The estimate of a run; JpoError where it does not fit into what is free, with settings that would."""
    chosen = settings_of(lm, config, lengths)
    needed = estimate(lm, config, chosen)
    free = free_bytes() if free is None else free
    if not config.check_memory or needed.total - needed.held <= free:
        return needed
    shown = "\n".join(f"  {name:<30}{size(count):>12}" for name, count in needed.parts().items())
    fits = "\n".join(f"  {line}" for line in advice(lm, config, chosen, free))
    raise JpoError(
        f"this run needs about {size(needed.total)}, and {size(free + needed.held)} can be had here:\n{shown}\n"
        f"what would fit:\n{fits}\n(--no-check-memory, check_memory=False: try it all the same)"
    )
