"""The forest batch: token segments that share their prefixes, and the rows whose log-likelihoods are asked for.

Equal prompts stand once, and so do equal (prompt, response) sequences; no padding exists. Knows token ids; never text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from jpo.errors import JpoError

Scope = Literal["response", "joint"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Forest:
    """R rows in S segments, L loss entries, N sequences; all index arrays are int32 unless said otherwise.

    tokens (R,); segments (S, 4): first_row, length, parent (-1: root), first_position; entry_row (L,), ascending, and
    entry_target (L,): the row whose output scores that token; the entries of sequence i are
    sequence_entries[sequence_start[i]:sequence_start[i + 1]] (int64). lengths (N,) int64 counts the scored tokens of
    each sequence, those that `drop_shared` left out included.
    """

    tokens: np.ndarray[Any, np.dtype[np.int32]]
    segments: np.ndarray[Any, np.dtype[np.int32]]
    entry_row: np.ndarray[Any, np.dtype[np.int32]]
    entry_target: np.ndarray[Any, np.dtype[np.int32]]
    sequence_start: np.ndarray[Any, np.dtype[np.int64]]
    sequence_entries: np.ndarray[Any, np.dtype[np.int64]]
    lengths: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def rows(self) -> int:
        """Tokens that the model really computes."""
        return len(self.tokens)

    @property
    def sequences(self) -> int:
        """Number of sequences asked for, duplicates included."""
        return len(self.lengths)

    def measured(self) -> Forest:
        """Without what only a pass reads: the sequences' sums and lengths stay."""
        none = np.empty(0, dtype=np.int32)
        return replace(self, segments=none.reshape(0, 4), entry_row=none, entry_target=none)

    def sequence_sums(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(L,) values of the entries -> (N,) float64 sums over each sequence (0 where it has none)."""
        owner = np.repeat(np.arange(self.sequences), np.diff(self.sequence_start))
        weights = np.asarray(values, dtype=np.float64)[self.sequence_entries]
        return np.bincount(owner, weights=weights, minlength=self.sequences).astype(np.float64)

    def entry_coefficients(self, coefficients: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N,) d loss / d log p of each sequence -> (L,): a row's coefficient sums those of the sequences through it,
        so that with equal instructions a shared prompt's cancels (Lemma D.1)."""
        repeated = np.repeat(np.asarray(coefficients, dtype=np.float64), np.diff(self.sequence_start))
        return np.bincount(self.sequence_entries, weights=repeated, minlength=len(self.entry_row)).astype(np.float64)


class _Builder:
    """Lays segments and entries out in order; an entry is known by its index."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.segments: list[tuple[int, int, int, int]] = []
        self.rows: list[int] = []
        self.targets: list[int] = []

    def segment(self, ids: Sequence[int], parent: int) -> int:
        position = 0 if parent < 0 else self.segments[parent][3] + self.segments[parent][1]
        self.segments.append((len(self.tokens), len(ids), parent, position))
        self.tokens.extend(ids)
        return len(self.segments) - 1

    def entries(self, first_row: int, targets: Sequence[int]) -> range:
        """Rows first_row, first_row + 1, ... score the targets."""
        start = len(self.rows)
        self.rows.extend(range(first_row, first_row + len(targets)))
        self.targets.extend(targets)
        return range(start, len(self.rows))


def _shared_prompts(
    keys: list[tuple[tuple[int, ...], tuple[int, ...]]], pairs: Iterable[tuple[int, int]]
) -> set[tuple[int, ...]]:
    """Prompts whose every pair stands on them with both sides: their rows' coefficients are known to be zero."""
    shared: set[tuple[int, ...]] = set()
    mixed: set[tuple[int, ...]] = set()
    used: set[int] = set()
    for chosen, rejected in pairs:
        prompts = {keys[chosen][0], keys[rejected][0]}
        (shared if len(prompts) == 1 else mixed).update(prompts)
        used.update((chosen, rejected))
    mixed.update(key[0] for index, key in enumerate(keys) if index not in used)
    return shared - mixed


def build_forest(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    scope: Scope = "response",
    drop_shared: Iterable[tuple[int, int]] | None = None,
) -> Forest:
    """The forest of N (prompt_ids, response_ids) sequences.

    scope "response" scores the response's tokens, "joint" every token but the first of the sequence. drop_shared:
    (chosen, rejected) index pairs of a loss of D = s_w - s_l alone; prompt rows that all their pairs share equally then
    carry no entries. JpoError where a sequence has no token to score.
    """
    if scope not in SCOPES:
        raise JpoError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
    keys = [(tuple(map(int, prompt)), tuple(map(int, response))) for prompt, response in sequences]
    dropped = _shared_prompts(keys, drop_shared) if drop_shared is not None and scope == "joint" else set()
    children: dict[tuple[int, ...], dict[tuple[int, ...], list[range]]] = {}
    for prompt, response in keys:
        children.setdefault(prompt, {})[response] = []
    builder = _Builder()
    for prompt, responses in children.items():
        _lay_tree(builder, prompt, responses, scope == "joint" and prompt not in dropped)
    parts = [children[prompt][response] for prompt, response in keys]
    lengths = [
        len(response) - (not prompt) + (max(len(prompt) - 1, 0) if scope == "joint" else 0) for prompt, response in keys
    ]
    for index, length in enumerate(lengths):
        if length < 1:
            raise JpoError(
                f"sequence {index} has no token to score: prompt {len(keys[index][0])}, response {len(keys[index][1])} tokens"
            )
    counts = [sum(map(len, ranges)) for ranges in parts]
    entries = [np.arange(r.start, r.stop, dtype=np.int64) for ranges in parts for r in ranges]
    return Forest(
        np.array(builder.tokens, dtype=np.int32),
        np.array(builder.segments, dtype=np.int32).reshape(-1, 4),
        np.array(builder.rows, dtype=np.int32),
        np.array(builder.targets, dtype=np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate(entries) if entries else np.empty(0, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
    )


def _lay_tree(
    builder: _Builder, prompt: tuple[int, ...], responses: dict[tuple[int, ...], list[range]], score_prompt: bool
) -> None:
    """One prompt and its distinct responses; fills each response's ranges of entries. Rows ascend: the prompt's own
    entries, one entry of its last row for each child, then the children's."""
    root = builder.segment(prompt, -1) if prompt else -1
    first = builder.segments[root][0] if prompt else 0
    shared = builder.entries(first, prompt[1:]) if score_prompt else range(0)
    for response, ranges in responses.items():
        ranges.append(shared)
        if prompt and response:
            start = len(builder.rows)
            builder.rows.append(first + len(prompt) - 1)
            builder.targets.append(response[0])
            ranges.append(range(start, start + 1))
    for response, ranges in responses.items():
        if response:
            child = builder.segment(response, root)
            ranges.append(builder.entries(builder.segments[child][0], response[1:]))
