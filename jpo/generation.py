"""Sampling from a model: prompts are computed once, their n samples decode side by side over a key-value cache.

Each sample draws from a generator of its own, seeded by (seed, prompt's place, sample's place): the same completion
comes whatever else stands in the batch. Knows token ids and stop conditions; never templates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jpo import _core
from jpo.defaults import MAX_NEW_TOKENS
from jpo.errors import JpoError

_STREAMS = 32  # decoded side by side
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Completion:
    """One sample: text without the stop string or end token, its token ids, the log-likelihood of the tokens drawn
    (under the model itself: temperature 1, no cut), and why it ended: "stop" or "length"."""

    text: str
    token_ids: list[int]
    logp: float
    finish_reason: str


@dataclass
class _Stream:
    prompt: int
    sample: int
    generator: np.random.Generator
    room: int  # for tokens of its own
    tokens: list[int] = field(default_factory=list)
    logp: float = 0.0
    reason: str = ""
    text: str = ""


def sample_generator(seed: int, number: int, sample: int) -> np.random.Generator:
    """What one sample draws from: a function of the seed, the prompt's number and the sample's own."""
    key = np.array([seed & _MASK, ((number << 20) + sample) & _MASK], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _check(n: int, temperature: float, top_p: float, top_k: int, max_new_tokens: int) -> None:
    for name, value, least in (("n", n, 1), ("top_k", top_k, 0), ("max_new_tokens", max_new_tokens, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise JpoError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    if not (np.isfinite(temperature) and temperature >= 0):
        raise JpoError(f"temperature: expected a number of at least 0 (0 is greedy), got {temperature!r}")
    if not 0 < top_p <= 1:
        raise JpoError(f"top_p: expected a number above 0 and at most 1, got {top_p!r}")


def generate(
    lm: Any,
    prompts: Sequence[str],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    stop: Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
    ids: Sequence[int] | None = None,
    on_token: Callable[[int, int, int], None] | None = None,
) -> list[list[Completion]]:
    """n completions of each prompt (plain strings; no template is added).

    temperature 0 is greedy; top_k 0 and top_p 1 cut nothing; a completion ends at the tokenizer's end tokens,
    stop_token_ids, a stop string, or max_new_tokens. ids: the prompts' numbers for the seeds (default: their places),
    so that a resumed run draws the same. on_token(prompt, sample, token id) is called as tokens come.
    """
    if isinstance(prompts, str):
        raise JpoError("prompts: expected a list of strings, got one string")
    _check(n, temperature, top_p, top_k, max_new_tokens)
    stops = [stop] if isinstance(stop, str) else [text for text in stop if text]
    ends = {*lm.tokenizer.eos_token_ids, *stop_token_ids}
    encoded = [lm.tokenizer.prompt_ids(prompt) for prompt in prompts]
    longest = int(lm.config["max_position_embeddings"])
    for place, tokens in enumerate(encoded):
        if not tokens:
            raise JpoError(f"prompts[{place}] is empty and the tokenizer adds no BOS: there is nothing to continue")
        if len(tokens) >= longest:
            raise JpoError(f"prompts[{place}] has {len(tokens)} tokens, but the model knows {longest} positions")
    out: list[list[Completion]] = [[] for _ in prompts]
    numbers = list(range(len(prompts))) if ids is None else list(ids)
    work = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(n)]
    for start in range(0, len(work), _STREAMS):
        batch = _Batch(lm, encoded, work[start : start + _STREAMS], numbers, seed, max_new_tokens, longest)
        batch.run(temperature, top_p, top_k, stops, ends, on_token)
        for stream in batch.streams:
            out[stream.prompt].append(Completion(stream.text, stream.tokens, stream.logp, stream.reason))
    return out


class _Batch:
    """Streams that decode side by side over one cache."""

    def __init__(
        self,
        lm: Any,
        encoded: Any,
        work: list[tuple[int, int]],
        numbers: list[int],
        seed: int,
        new_tokens: int,
        longest: int,
    ):
        self.lm, self.encoded = lm, encoded
        places: dict[int, tuple[int, int]] = {}
        rows = 0
        for prompt, _ in work:
            if prompt not in places:
                places[prompt] = (rows, len(encoded[prompt]))
                rows += len(encoded[prompt])
        self.places = places
        self.streams = []
        ranges = []  # of each stream: the prompt's first cache row and length, its own first row
        for prompt, sample in work:
            room = min(new_tokens, longest - len(encoded[prompt]))
            stream = _Stream(prompt, sample, sample_generator(seed, numbers[prompt], sample), room)
            self.streams.append(stream)
            ranges.append((*places[prompt], rows))
            rows += stream.room
        self.ranges = np.array(ranges, dtype=np.int32)
        place = np.arange(len(work), dtype=np.int32)
        self.segments = np.stack([place, np.ones_like(place), 2 * place, np.full_like(place, 2)], axis=1)
        # longest text that a stream may come to: longrope has frequencies for short and for long texts
        self.reach = max(len(encoded[stream.prompt]) + stream.room for stream in self.streams)
        c = lm.config
        shape = (c["num_hidden_layers"], rows, c["num_key_value_heads"] * c["head_dim"])
        self.k, self.v = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)

    def _decode(
        self, tokens: Any, positions: Any, rows: Any, segments: Any, ranges: Any, wanted: Any
    ) -> np.ndarray[Any, Any]:
        arrays = [np.asarray(part, dtype=np.int32) for part in (tokens, positions, rows, segments, ranges, wanted)]
        self.lm._checkpoint.check_files()
        return self.lm._core.decode(self.k, self.v, *arrays, self.lm._adapter_on, self.reach)  # type: ignore[no-any-return]

    def run(
        self, temperature: float, top_p: float, top_k: int, stops: list[str], ends: set[int], on_token: Any
    ) -> None:
        """Until every stream has ended."""
        rows = {prompt: row for row, prompt in enumerate(self.places)}
        logits = self._prompts()[[rows[stream.prompt] for stream in self.streams]]
        active = list(range(len(self.streams)))
        for count in itertools.count(1):  # tokens of each stream that is active
            streams = [self.streams[place] for place in active]
            tokens, logps = _draw(logits, streams, temperature, top_p, top_k)
            for stream, token, logp in zip(streams, tokens.tolist(), logps.tolist(), strict=True):
                stream.logp += logp
                if on_token:
                    on_token(stream.prompt, stream.sample, token)
                self._take(stream, token, stops, ends)
            going = [i for i, stream in enumerate(streams) if not stream.reason]
            if not going:
                return
            active = [active[i] for i in going]
            logits = self._next(active, tokens[going], count)

    def _prompts(self) -> np.ndarray[Any, Any]:
        """One pass over the distinct prompts: logits after each."""
        tokens = [token for prompt in self.places for token in self.encoded[prompt]]
        positions = [i for prompt in self.places for i in range(len(self.encoded[prompt]))]
        ranges = list(self.places.values())
        segments = [(first, length, place, 1) for place, (first, length) in enumerate(ranges)]
        wanted = [first + length - 1 for first, length in ranges]
        return self._decode(tokens, positions, np.arange(len(tokens)), segments, ranges, wanted)

    def _next(self, active: list[int], tokens: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
        """One row of each active stream, which has `count` tokens: logits after its last."""
        first, length, own = self.ranges[active].T
        ranges = np.stack([first, length, own, np.full_like(own, count)], axis=1).reshape(-1, 2)
        segments = self.segments[: len(active)]
        return self._decode(tokens, length + (count - 1), own + (count - 1), segments, ranges, segments[:, 0])

    def _take(self, stream: _Stream, token: int, stops: list[str], ends: set[int]) -> None:
        stream.tokens.append(token)
        if token in ends:
            stream.reason = "stop"
            stream.text = self._text(stream, stream.tokens[:-1])
            return
        if stops:
            text = self._text(stream, stream.tokens)
            found = [text.find(mark) for mark in stops if mark in text]
            if found:
                stream.reason, stream.text = "stop", text[: min(found)]
                return
        if len(stream.tokens) >= stream.room:
            stream.reason, stream.text = "length", self._text(stream, stream.tokens)

    def _text(self, stream: _Stream, tokens: list[int]) -> str:
        """What the tokens add to the prompt's text, a leading space included."""
        return str(self.lm.tokenizer.decode_continuation(self.encoded[stream.prompt], tokens))


def _draw(
    logits: np.ndarray[Any, Any], streams: list[_Stream], temperature: float, top_p: float, top_k: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A token of each stream and its log-likelihood under the model; where it is random, for one number of its
    generator."""
    uniforms = np.zeros(len(streams))
    if temperature > 0:
        uniforms[:] = [stream.generator.random() for stream in streams]
    try:
        return _core.draw(logits, uniforms, temperature, min(top_k, logits.shape[1]), top_p)
    except ValueError as error:
        raise JpoError(str(error)) from None
