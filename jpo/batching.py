"""Continuous batching: streams of many requests, over one model with several adapters, decode side by side.

A request joins at the next token, and its place is free as soon as its last one is drawn. Long prompts are read in
chunks between the tokens of those who already speak, short ones first every other time. A stream's tokens are a
function of its request alone: chunks are cut by the prompt, products of few and of many rows are kept apart
(Cache.run), and each sample draws from a generator of its own; with float32 products on AVX2 and AVX-512 this holds
bit for bit. Knows token ids and adapters; never HTTP, templates or messages.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jpo import _core
from jpo.cache import PAGE, Cache, CacheType, Piece, Range, pages_of, row_bytes
from jpo.errors import JpoError
from jpo.generation import sample_generator
from jpo.memory import free_bytes
from jpo.model import HeldAdapter
from jpo.streams import Alternatives, Drawn, Event, Failed, Full, PromptRead, Request, Scored
from jpo.textstream import TextStream

CHUNK = 256  # tokens of a prompt that one pass reads
SCORED = 64  # rows whose logits stand in memory together while a prompt is scored
_OVERTAKEN = 32  # times that smaller requests may pass one that waits for room
_CACHE_BYTES = 1 << 30


@dataclass
class _Reading:
    """One model's reading of a request's prompt."""

    model: str
    pages: list[int] = field(default_factory=list)
    done: int = 0
    logps: list[float] = field(default_factory=list)  # of the prompt's tokens from the second on
    top: list[Alternatives] = field(default_factory=list)
    last: np.ndarray[Any, Any] | None = None  # (V,) logits behind the prompt


@dataclass
class _Sample:
    place: int
    generator: np.random.Generator
    text: TextStream
    tokens: list[int] = field(default_factory=list)
    pages: dict[str, list[int]] = field(default_factory=dict)
    finish: str = ""


class Job:
    """A request on its way. cancel() may be called from any thread."""

    def __init__(self, request: Request, on_event: Callable[[Event], None]):
        self.request, self.on_event = request, on_event
        self.cancelled = False
        self.waiting_since = time.monotonic()
        self.passed_over = 0
        self.readings = [_Reading(model) for model in request.models]
        self.samples: list[_Sample] = []

    def cancel(self) -> None:
        """Nobody waits for it any more: its room is free at the next token."""
        self.cancelled = True

    @property
    def room(self) -> int:
        """Pages that it may come to."""
        own = pages_of(max(0, self.request.max_new_tokens - 1))
        return len(self.readings) * (pages_of(len(self.request.prompt)) + self.request.n * own)

    @property
    def rows(self) -> int:
        """Rows that it adds to each token's passes."""
        return len(self.readings) * self.request.n

    @property
    def reach(self) -> int:
        """Positions that its text may come to."""
        return len(self.request.prompt) + self.request.max_new_tokens

    @property
    def read(self) -> bool:
        """Whether all models have read the prompt."""
        return all(reading.last is not None for reading in self.readings)

    def speaking(self) -> list[_Sample]:
        """Samples that want a next token."""
        return [sample for sample in self.samples if not sample.finish]


@dataclass
class Counts:
    """What the batcher has done since it began."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    cancelled: int = 0


def cache_pages(lm: Any, tokens: int | None, dtype: str = "float32") -> int:
    """Pages for so many tokens; by default 1 GiB, at most a quarter of what is free, but one whole text of the model
    where that fits a quarter."""
    if tokens is not None:
        if tokens < 4 * PAGE:
            raise JpoError(f"cache_tokens: expected at least {4 * PAGE}, got {tokens}")
        return pages_of(tokens)
    each = PAGE * row_bytes(lm.config, dtype)
    whole = pages_of(int(lm.config["max_position_embeddings"]))
    most = max(4, free_bytes() // 4 // each)
    return int(min(max(_CACHE_BYTES // each, min(whole, most)), most))


class Batcher:
    """One thread that decodes. adapters: name -> adapter (None: the base itself). streams: rows a token; queue:
    requests that may wait beside those at work. cache_tokens, cache_dtype: how many tokens' keys and values stand in
    memory, and how (jpo.cache)."""

    def __init__(
        self,
        lm: Any,
        adapters: Mapping[str, HeldAdapter | None],
        *,
        streams: int = 64,
        queue: int = 256,
        cache_tokens: int | None = None,
        cache_dtype: CacheType = "float32",
    ):
        for name, value, least in (("streams", streams, 1), ("queue", queue, 0)):
            if value < least:
                raise JpoError(f"{name}: expected a whole number of at least {least}, got {value}")
        self.lm, self.adapters = lm, dict(adapters)
        self.streams, self.queue = streams, queue
        self.cache = Cache(lm, cache_pages(lm, cache_tokens, cache_dtype), cache_dtype)
        self.counts = Counts()
        self._rotaries = [r["original"] for r in lm.config.get("rotary", ()) if "long_inv_freq" in r]
        self._cut = self.cache.small if lm.compute == "float32" else streams
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._reserved = 0
        self._seconds: deque[float] = deque(maxlen=64)  # of the last requests, from the first pass to the end
        self._wake = threading.Condition()
        self._closing = False
        self._installed: HeldAdapter | None = None
        self._thread = threading.Thread(target=self._loop, name="jpo-batcher", daemon=True)
        self._thread.start()

    # what other threads call

    @property
    def longest(self) -> int:
        """Tokens that a text may come to: the model's positions, or what the cache holds."""
        return min(int(self.lm.config["max_position_embeddings"]), (self.cache.pages - 2) * PAGE)

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def speaking(self) -> int:
        """Streams that decode now."""
        return sum(len(job.speaking()) for job in list(self._active))

    def submit(self, requests: Sequence[Request], on_event: Callable[[int, Event], None]) -> list[Job]:
        """Takes requests that came together, all or none; events (the request's place, what happened) come from the
        batcher's thread. Full where too many wait; JpoError where one can never be served."""
        jobs = [Job(request, partial(on_event, place)) for place, request in enumerate(requests)]
        for job in jobs:
            self._check(job)
        with self._wake:
            if self._closing:
                raise JpoError("the server is shutting down")
            free = self.streams - sum(job.rows for job in self._active)
            if len(self._waiting) >= self.queue + max(0, free):
                raise Full(self._patience())
            self._waiting.extend(jobs)
            self._wake.notify()
        return jobs

    def _check(self, job: Job) -> None:
        request = job.request
        if not request.prompt:
            raise JpoError("prompt: is empty and the tokenizer adds no BOS: there is nothing to continue")
        if job.rows > self.streams or job.room > self.cache.pages:
            raise JpoError(
                f"n: {request.n} samples of {job.reach} tokens by {len(job.readings)} models do not fit {self.streams} "
                f"streams and a cache of {self.cache.pages * PAGE} tokens"
            )

    def _patience(self) -> int:
        """Seconds until the queue has probably moved on."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else 2.0
        return int(min(60, max(1, round(mean * (1 + len(self._waiting)) / max(1, len(self._active))))))

    def close(self) -> None:
        """Ends everything that is on its way and the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    # the thread

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._active and not self._closing:
                    self._wake.wait()
                if self._closing:
                    break
                self._admit()
            try:
                self._step()
            except Exception as error:  # whatever it is, the next requests are served
                self._fail(f"{type(error).__name__}: {error}")
        self._fail("the server is shutting down")
        for job in self._waiting:
            job.on_event(Failed("the server is shutting down"))

    def _fail(self, message: str) -> None:
        for job in list(self._active):
            self._end(job)
            job.on_event(Failed(message))
        self._installed = None

    def _admit(self) -> None:
        """Whoever fits begins; one that waits for room is passed by smaller ones a bounded number of times."""
        rows = sum(job.rows for job in self._active)
        for job in list(self._waiting):
            if job.cancelled:
                self._waiting.remove(job)
                self.counts.cancelled += 1
            elif rows + job.rows <= self.streams and self._reserved + job.room <= self.cache.pages:
                self._waiting.remove(job)
                self._active.append(job)
                self._reserved += job.room
                rows += job.rows
                job.waiting_since, job.passed_over = time.monotonic(), -1
            elif job.passed_over >= _OVERTAKEN:
                return
            else:
                job.passed_over += 1

    def _end(self, job: Job) -> None:
        """Gives back all that the job holds."""
        self._active.remove(job)
        self._reserved -= job.room
        self._seconds.append(time.monotonic() - job.waiting_since)
        for pages in [*(r.pages for r in job.readings), *(p for s in job.samples for p in s.pages.values())]:
            self.cache.give_back(pages)
            pages.clear()

    def _step(self) -> None:
        for job in [job for job in self._active if job.cancelled]:
            self._end(job)
            self.counts.cancelled += 1
        self._speak()
        self._read_prompts()
        self.counts.steps += 1

    def _far(self, job: Job) -> bool:
        """Whether its text calls for the frequencies of long texts (longrope)."""
        return any(job.reach > original for original in self._rotaries)

    def _run(self, model: str, pieces: Sequence[Piece], reach: int, alike: bool) -> None:
        adapter = self.adapters[model]
        if adapter is not None and adapter is not self._installed:
            self.lm.use_adapter(adapter)
            self._installed = adapter
        self.cache.run(pieces, adapter=adapter is not None, reach=reach, alike=alike)

    # prompts

    def _read_prompts(self) -> None:
        """The next chunk of some prompts, about CHUNK tokens in all: the oldest first, or every other time the
        shortest."""
        work = [(job, r) for job in self._active for r in job.readings if r.last is None]
        if self.counts.steps % 2:
            work.sort(key=lambda item: len(item[0].request.prompt) - item[1].done)
        budget, groups = CHUNK, dict[tuple[str, bool], list[tuple[Job, _Reading]]]()
        for job, reading in work:
            if budget <= 0:
                break
            budget -= min(CHUNK, len(job.request.prompt) - reading.done)
            groups.setdefault((reading.model, self._far(job)), []).append((job, reading))
        for (model, _), chosen in groups.items():
            self._read_chunks(model, chosen)
        for job in {id(job): job for job, _ in work if job.read}.values():
            self._begin(job)

    def _read_chunks(self, model: str, chosen: Sequence[tuple[Job, _Reading]]) -> None:
        pieces = []
        for job, reading in chosen:
            prompt, stop = job.request.prompt, min(reading.done + CHUNK, len(job.request.prompt))
            while len(reading.pages) < pages_of(stop):
                reading.pages.append(self.cache.take())
            rows = [reading.pages[at // PAGE] + at % PAGE for at in range(reading.done, stop)]
            path = list(_path(reading.pages, stop))
            pieces.append(Piece(prompt[reading.done : stop], reading.done, rows, path))
        self._run(model, pieces, max(job.reach for job, _ in chosen), alike=True)
        first = 0
        for (job, reading), piece in zip(chosen, pieces, strict=True):
            if job.request.score_prompt:
                self._score(job, reading, piece, first)
            reading.done += len(piece.tokens)
            first += len(piece.tokens)
            self.counts.prompt_tokens += len(piece.tokens)
            if reading.done == len(job.request.prompt):
                reading.last = self.cache.logits([first - 1])[0]

    def _score(self, job: Job, reading: _Reading, piece: Piece, first: int) -> None:
        """Each row of the piece scores the prompt's next token."""
        targets = job.request.prompt[piece.position + 1 : piece.position + len(piece.tokens) + 1]
        for start in range(0, len(targets), SCORED):
            some = targets[start : start + SCORED]
            logits = self.cache.logits(range(first + start, first + start + len(some)))
            top = job.request.top if reading.model == job.request.model else 0
            logps, alternatives = scored(logits, np.asarray(some), top)
            reading.logps += logps.tolist()
            reading.top += alternatives

    def _begin(self, job: Job) -> None:
        """The prompt is read: its scores go out, and the samples draw their first tokens."""
        request = job.request
        tokens: list[Scored] = []
        if request.score_prompt:
            own, *others = job.readings
            tokens.append(Scored(request.prompt[0], None))
            for place, token in enumerate(request.prompt[1:]):
                witnesses = tuple(reading.logps[place] for reading in others)
                tokens.append(Scored(token, own.logps[place], own.top[place] if request.top else (), witnesses))
        job.on_event(PromptRead(tokens))
        for place in range(request.n):
            text = TextStream(self.lm.tokenizer, request.prompt, request.stops)
            sample = _Sample(place, sample_generator(request.seed, 0, place), text)
            sample.pages = {model: [] for model in request.models}
            job.samples.append(sample)
        if request.max_new_tokens < 1:
            for sample in job.samples:
                self._finish(job, sample, None, "", "length")
            return
        rows = {r.model: r.last for r in job.readings if r.last is not None}
        self._draw([(job, sample, {m: row for m, row in rows.items()}) for sample in job.samples])

    # tokens

    def _speak(self) -> None:
        """The next token of every stream."""
        streams = [(job, sample) for job in self._active for sample in job.speaking()]
        if not streams:
            return
        rows: list[dict[str, np.ndarray[Any, Any]]] = [{} for _ in streams]
        groups = dict[tuple[str, bool], list[int]]()
        for place, (job, _) in enumerate(streams):
            for model in job.request.models:
                groups.setdefault((model, self._far(job)), []).append(place)
        for (model, _), places in groups.items():
            for start in range(0, len(places), self._cut):
                some = places[start : start + self._cut]
                pieces = [self._next_row(*streams[place], model) for place in some]
                self._run(model, pieces, max(streams[place][0].reach for place in some), alike=False)
                logits = self.cache.logits(range(len(some)))
                for row, place in enumerate(some):
                    rows[place][model] = logits[row]
        self._draw([(job, sample, row) for (job, sample), row in zip(streams, rows, strict=True)])

    def _next_row(self, job: Job, sample: _Sample, model: str) -> Piece:
        """The row of a stream's last token."""
        pages, at = sample.pages[model], len(sample.tokens) - 1
        if at // PAGE == len(pages):
            pages.append(self.cache.take())
        prompt = next(reading.pages for reading in job.readings if reading.model == model)
        length = len(job.request.prompt)
        path = [*_path(prompt, length), *_path(pages, at + 1)]
        return Piece(sample.tokens[-1:], length + at, [pages[-1] + at % PAGE], path)

    def _draw(self, streams: Sequence[tuple[Job, _Sample, Mapping[str, np.ndarray[Any, Any]]]]) -> None:
        """A token of each stream from its rows of logits, one a model; those of equal settings together."""
        groups = dict[tuple[float, int, float], list[int]]()
        for place, (job, _, _) in enumerate(streams):
            r = job.request
            groups.setdefault((r.temperature, r.top_k, r.top_p), []).append(place)
        for (temperature, top_k, top_p), places in groups.items():
            logits = np.stack([streams[place][2][streams[place][0].request.model] for place in places])
            uniforms = np.array([streams[place][1].generator.random() if temperature > 0 else 0.0 for place in places])
            tokens, logps = _core.draw(logits, uniforms, temperature, min(top_k, logits.shape[1]), top_p)
            for place, token, logp in zip(places, tokens.tolist(), logps.tolist(), strict=True):
                job, sample, rows = streams[place]
                self._take(job, sample, _token(job.request, token, logp, rows))

    def _take(self, job: Job, sample: _Sample, token: Scored) -> None:
        sample.tokens.append(token.token_id)
        self.counts.new_tokens += 1
        if token.token_id in job.request.ends:
            text, _ = sample.text.end()
            self._finish(job, sample, token, text, "stop")
            return
        text, stopped = sample.text.push(token.token_id)
        if stopped:
            self._finish(job, sample, token, text, "stop")
        elif len(sample.tokens) >= job.request.max_new_tokens:
            rest, stopped = sample.text.end()
            self._finish(job, sample, token, text + rest, "stop" if stopped else "length")
        else:
            job.on_event(Drawn(sample.place, token, text))

    def _finish(self, job: Job, sample: _Sample, token: Scored | None, text: str, why: str) -> None:
        sample.finish = why
        for pages in sample.pages.values():
            self.cache.give_back(pages)
            pages.clear()
        if not job.speaking():
            self._end(job)
        job.on_event(Drawn(sample.place, token, text, why))


def _path(pages: Sequence[int], rows: int) -> Iterator[Range]:
    """The ranges of the first `rows` rows, page by page."""
    for place, page in enumerate(pages[: pages_of(rows)]):
        yield page, min(PAGE, rows - place * PAGE)


def _token(request: Request, token: int, logp: float, rows: Mapping[str, Any]) -> Scored:
    """The drawn token with its scores by every model."""
    target, top = np.array([token]), list[Alternatives]()
    if request.top:
        found, top = scored(rows[request.model][None], target, request.top)
        logp = float(found[0])
    witnesses = tuple(float(scored(rows[model][None], target, 0)[0][0]) for model in request.witnesses)
    return Scored(token, logp, top[0] if top else (), witnesses)


def scored(logits: Any, targets: Any, top: int) -> tuple[np.ndarray[Any, Any], list[Alternatives]]:
    """Log-likelihoods (n,) of targets (n,) under logits (n, V) and, for each row, the `top` likeliest tokens."""
    n, vocabulary = logits.shape
    rows = np.arange(n)
    z = np.ascontiguousarray(logits)
    if not top:
        return _core.logits_logps(z, 0, rows, np.asarray(targets, dtype=np.int64)), []
    top = min(top, vocabulary)
    best = z.argmax(axis=1)[:, None] if top == 1 else np.argpartition(-z, top - 1, axis=1)[:, :top]
    asked = np.concatenate([np.asarray(targets)[:, None], best], axis=1)
    flat = _core.logits_logps(z, 0, np.repeat(rows, top + 1), asked.reshape(-1).astype(np.int64)).reshape(n, top + 1)
    alternatives: list[Alternatives] = [
        sorted(zip(ids.tolist(), values.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
        for ids, values in zip(best, flat[:, 1:], strict=True)
    ]
    return np.ascontiguousarray(flat[:, 0]), alternatives
