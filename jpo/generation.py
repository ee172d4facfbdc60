"""Sampling from a model: prompts are computed once, their n samples decode side by side over a key-value cache.

Each sample draws from a generator of its own, seeded by (seed, prompt's place, sample's place): the same completion
comes whatever else stands in the batch. Knows token ids and stop conditions; never templates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jpo import _core
from jpo.cache import PAGE, Cache, CacheType, pages_of
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
    place: int = -1  # in the decoder
    tokens: list[int] = field(default_factory=list)
    logp: float = 0.0
    reason: str = ""
    text: str = ""


def sample_generator(seed: int, number: int, sample: int) -> np.random.Generator:
    """What one sample draws from: a function of the seed, the prompt's number and the sample's own."""
    key = np.array([seed & _MASK, ((number << 20) + sample) & _MASK], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _number(name: str, value: Any) -> float:
    """JpoError, naming the argument, for what is no real number."""
    if isinstance(value, (str, bytes, complex)) or not hasattr(value, "__float__"):
        raise JpoError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _check(n: int, temperature: float, top_p: float, top_k: int, max_new_tokens: int, seed: int) -> None:
    wholes = (("n", n, 1), ("top_k", top_k, 0), ("max_new_tokens", max_new_tokens, 1), ("seed", seed, None))
    for name, value, least in wholes:
        bounded = f" of at least {least}" if least is not None else ""
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or (least is not None and value < least):
            raise JpoError(f"{name}: expected a whole number{bounded}, got {value!r}")
    if not (np.isfinite(_number("temperature", temperature)) and temperature >= 0):
        raise JpoError(f"temperature: expected a number of at least 0 (0 is greedy), got {temperature!r}")
    if not 0 < _number("top_p", top_p) <= 1:
        raise JpoError(f"top_p: expected a number above 0 and at most 1, got {top_p!r}")


def _stops(stop: Any) -> list[str]:
    """The stop strings of one, of several or of None; empty ones end nothing."""
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    for text in stops:
        if not isinstance(text, str):
            raise JpoError(f"stop: expected strings (token ids: stop_token_ids), got {text!r}")
    return [text for text in stops if text]


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
    cache_dtype: CacheType = "float32",
) -> list[list[Completion]]:
    """n completions of each prompt (plain strings; no template is added).

    temperature 0 is greedy; top_k 0 and top_p 1 cut nothing; a completion ends at the tokenizer's end tokens,
    stop_token_ids, a stop string, or max_new_tokens. ids: the prompts' numbers for the seeds (default: their places),
    so that a resumed run draws the same. on_token(prompt, sample, token id) is called as tokens come. cache_dtype: how
    keys and values are stored (jpo.cache); "bfloat16" and "float16" halve their memory, "q8_0" takes 0.27 of it.
    """
    if isinstance(prompts, str):
        raise JpoError("prompts: expected a list of strings, got one string")
    prompts = list(prompts)
    _check(n, temperature, top_p, top_k, max_new_tokens, seed)
    stops = _stops(stop)
    ends = {*lm.tokenizer.eos_token_ids, *stop_token_ids}
    encoded = [lm.tokenizer.prompt_ids(prompt) for prompt in prompts]
    longest = int(lm.config["max_position_embeddings"])
    for place, tokens in enumerate(encoded):
        if not tokens:
            raise JpoError(f"prompts[{place}] is empty and the tokenizer adds no BOS: there is nothing to continue")
        if len(tokens) >= longest:
            raise JpoError(
                f"prompts[{place}] has {len(tokens)} tokens, but the model knows {longest} positions; shorten it"
            )
    numbers = list(range(len(prompts))) if ids is None else list(ids)
    if len(numbers) != len(prompts):
        raise JpoError(f"ids: expected a number for each of the {len(prompts)} prompts, got {len(numbers)}")
    if not encoded:
        return []
    decoder = _Decoder(lm, encoded, n, max_new_tokens, longest, cache_dtype)
    waiting = deque(
        _Stream(prompt, sample, sample_generator(seed, numbers[prompt], sample), decoder.rooms[prompt])
        for prompt in range(len(prompts))
        for sample in range(n)
    )
    rule = _Rule(lm, encoded, temperature, top_p, top_k, stops, ends, on_token)
    out: list[list[Completion | None]] = [[None] * n for _ in prompts]
    active = list[_Stream]()
    while waiting or active:
        if decoder.free and waiting:
            drawing = [waiting.popleft() for _ in range(min(len(decoder.free), len(waiting)))]
            rule.draw(decoder.begin(drawing), drawing)
            active += drawing
        else:
            rule.draw(decoder.next(active), active)
        for stream in active:
            if stream.reason:
                decoder.end(stream)
                out[stream.prompt][stream.sample] = Completion(stream.text, stream.tokens, stream.logp, stream.reason)
        active = [stream for stream in active if not stream.reason]
    return out  # type: ignore[return-value]


class _Prompt:
    """A prompt that streams read: its pages, and the logits behind it until all its samples have begun."""

    def __init__(self, tokens: Sequence[int], samples: int):
        self.tokens, self.unbegun, self.open = tokens, samples, samples
        self.pages: list[int] = []
        self.last: np.ndarray[Any, Any] | None = None  # (V,)


class _Decoder:
    """Streams that decode side by side over one cache of pages; as one ends, its pages and its place serve the next.

    A place holds the path of its stream: the prompt's pages, shared by the samples of a prompt, then its own."""

    def __init__(
        self, lm: Any, encoded: Sequence[Sequence[int]], n: int, new_tokens: int, longest: int, cache_dtype: str
    ):
        self.lm = lm
        self.prompts = [_Prompt(tokens, n) for tokens in encoded]
        self.rooms = [min(new_tokens, longest - len(tokens)) for tokens in encoded]
        # longest text that a stream may come to: longrope has frequencies for short and for long texts
        self.reach = max(len(tokens) + room for tokens, room in zip(encoded, self.rooms, strict=True))
        places = min(_STREAMS, n * len(encoded))
        shared = sorted((pages_of(len(tokens)) for tokens in encoded), reverse=True)
        own = [pages_of(room - 1) for room in self.rooms]
        # whoever decodes side by side fits: a prompt needs its pages once
        pages = sum(shared[:places]) + sum(sorted(own * min(n, places), reverse=True)[:places])
        self.cache = Cache(lm, pages, cache_dtype)
        self.free = list(range(places))[::-1]
        self.first = np.zeros((places, shared[0] + max(own)), dtype=np.int32)  # pages of each place's path
        self.filled = np.zeros_like(self.first)  # and their rows that hold keys
        self.at = np.zeros((places, 2), dtype=np.int32)  # the prompt's tokens, and the stream's own that hold keys

    def decode(self, tokens: Any, positions: Any, rows: Any, segments: Any, ranges: Any, wanted: Any) -> Any:
        """One pass; see Cache.decode."""
        adapter = self.lm._adapter_on
        return self.cache.decode(tokens, positions, rows, segments, ranges, wanted, adapter, self.reach)

    def begin(self, streams: Sequence[_Stream]) -> np.ndarray[Any, Any]:
        """Logits (n, V) behind the prompts of new streams, no more than there are free places; one pass over the
        prompts that nobody has read."""
        prompts = {stream.prompt: self.prompts[stream.prompt] for stream in streams}
        self._read([prompt for prompt in prompts.values() if prompt.last is None])
        logits = np.stack([np.asarray(prompts[stream.prompt].last) for stream in streams])
        for stream in streams:
            prompt, place = prompts[stream.prompt], self.free.pop()
            stream.place = place
            count, length = len(prompt.pages), len(prompt.tokens)
            self.at[place] = length, 0
            self.first[place, :count] = prompt.pages
            self.filled[place, :count] = PAGE
            self.filled[place, count - 1] = length - PAGE * (count - 1)
            prompt.unbegun -= 1
            if not prompt.unbegun:
                prompt.last = None
        return logits

    def _read(self, prompts: Sequence[_Prompt]) -> None:
        """One pass over the prompts."""
        if not prompts:
            return
        rows: list[int] = []
        ranges: list[tuple[int, int]] = []
        segments: list[tuple[int, int, int, int]] = []
        for prompt in prompts:
            length = len(prompt.tokens)
            prompt.pages = [self.cache.take() for _ in range(pages_of(length))]
            segments.append((len(rows), length, len(ranges), len(prompt.pages)))
            ranges += [(page, min(PAGE, length - PAGE * i)) for i, page in enumerate(prompt.pages)]
            rows += [prompt.pages[i // PAGE] + i % PAGE for i in range(length)]
        tokens = np.concatenate([np.asarray(prompt.tokens, dtype=np.int32) for prompt in prompts])
        positions = np.concatenate([np.arange(len(prompt.tokens)) for prompt in prompts])
        wanted = [first + length - 1 for first, length, _, _ in segments]
        for prompt, logits in zip(prompts, self.decode(tokens, positions, rows, segments, ranges, wanted), strict=True):
            prompt.last = logits

    def next(self, streams: Sequence[_Stream]) -> np.ndarray[Any, Any]:
        """Logits (n, V) behind the last token of each stream."""
        places = np.array([stream.place for stream in streams])
        prompt, own = self.at[places].T
        column = (prompt + PAGE - 1) // PAGE + own // PAGE
        for i in np.flatnonzero(own % PAGE == 0):
            self.first[places[i], column[i]] = self.cache.take()
        rows = self.first[places, column] + own % PAGE
        self.filled[places, column] = own % PAGE + 1
        self.at[places, 1] += 1
        first, filled = (part[places, : column.max() + 1] for part in (self.first, self.filled))
        held = filled > 0
        count = held.sum(axis=1)
        number = np.arange(len(streams))
        segments = np.stack([number, np.ones_like(number), np.cumsum(count) - count, count], axis=1)
        tokens = [stream.tokens[-1] for stream in streams]
        return self.decode(  # type: ignore[no-any-return]
            tokens, prompt + own, rows, segments, np.stack([first[held], filled[held]], axis=1), number
        )

    def end(self, stream: _Stream) -> None:
        """Gives back the stream's place and pages, and the prompt's where it was the last to read it."""
        place, prompt = stream.place, self.prompts[stream.prompt]
        own = slice(len(prompt.pages), len(prompt.pages) + pages_of(int(self.at[place, 1])))
        self.cache.give_back(self.first[place, own].tolist())
        self.filled[place] = 0
        self.free.append(place)
        prompt.open -= 1
        if not prompt.open:
            self.cache.give_back(prompt.pages)


@dataclass(frozen=True)
class _Rule:
    """How tokens are drawn and what ends a stream."""

    lm: Any
    encoded: Sequence[Sequence[int]]
    temperature: float
    top_p: float
    top_k: int
    stops: Sequence[str]
    ends: set[int]
    on_token: Callable[[int, int, int], None] | None

    def draw(self, logits: np.ndarray[Any, Any], streams: Sequence[_Stream]) -> None:
        """The next token of each stream from its row of logits."""
        tokens, logps = _draw(logits, streams, self.temperature, self.top_p, self.top_k)
        for stream, token, logp in zip(streams, tokens.tolist(), logps.tolist(), strict=True):
            stream.logp += logp
            if self.on_token:
                self.on_token(stream.prompt, stream.sample, token)
            self._append(stream, token)

    def _append(self, stream: _Stream, token: int) -> None:
        stream.tokens.append(token)
        if token in self.ends:
            stream.reason = "stop"
            stream.text = self._text(stream, stream.tokens[:-1])
            return
        if self.stops:
            text = self._text(stream, stream.tokens)
            found = [text.find(mark) for mark in self.stops if mark in text]
            if found:
                stream.reason, stream.text = "stop", text[: min(found)]
                return
        if len(stream.tokens) >= stream.room:
            stream.reason, stream.text = "length", self._text(stream, stream.tokens)

    def _text(self, stream: _Stream, tokens: list[int]) -> str:
        """What the tokens add to the prompt's text, a leading space included."""
        return str(self.lm.tokenizer.decode_continuation(self.encoded[stream.prompt], tokens))


def _draw(
    logits: np.ndarray[Any, Any], streams: Sequence[_Stream], temperature: float, top_p: float, top_k: int
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
