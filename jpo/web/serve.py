"""The routes of `jpo serve`: OpenAI's, health and metrics; the comparing page stands in jpo.web.compare.

Knows HTTP and OpenAI's forms; how tokens come stands in jpo.batching.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from jpo import streams
from jpo.batching import Batcher
from jpo.errors import JpoError
from jpo.streams import Drawn, Event, Failed, Full, PromptRead
from jpo.web import metrics, openai_forms, openapi
from jpo.web.models import Models
from jpo.web.openai_forms import ApiError, Asked, TokenText
from jpo.web.security import Guard, from_elsewhere, json_object, protected

BODY_LIMIT = 8 << 20  # bytes: batches of prompts in token ids
_CLOSED = 499  # the client went away before its answer was there


class Gone(Exception):
    """The client has closed the connection."""


class Running:
    """Requests on their way: their events in order, until all have ended. Leaving the block frees what still runs."""

    def __init__(self, batcher: Batcher, requests: Sequence[streams.Request], http: Request):
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        self._open = sum(request.n for request in requests)
        self._gone = False
        self._jobs = batcher.submit(requests, self._put)
        self._watch = asyncio.ensure_future(self._watched(http))

    def _put(self, place: int, event: Event) -> None:  # from the batcher's thread
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (place, event))

    async def _watched(self, http: Request) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self.cancel()
        self._queue.put_nowait((0, Failed("the client has gone")))

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(the request's place, what happened); ApiError where one fails, Gone where the client has left."""
        while self._open:
            place, event = await self._queue.get()
            if self._gone:
                raise Gone
            if isinstance(event, Failed):
                raise ApiError(event.message, status=503)
            if isinstance(event, Drawn) and event.finish:
                self._open -= 1
            yield place, event

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        self.cancel()

    def cancel(self) -> None:
        """Frees what still runs."""
        for job in self._jobs:
            job.cancel()


class Choice:
    """One choice of an answer while it comes."""

    def __init__(self, index: int):
        self.index, self.text, self.finish, self.count = index, "", "", 0
        self.tokens: list[TokenText] = []


class Api:
    """OpenAI's routes over the models. key: what a client must send as its API key (None: nothing)."""

    def __init__(self, models: Models, key: str | None = None, max_new_tokens: int = 400):
        self.models, self.key, self.max_new_tokens = models, key, max_new_tokens
        self.started = int(time.time())
        self.requests = metrics.Counter("jpo_requests_total", "Requests by route and status.")
        self.first = metrics.Histogram("jpo_first_token_seconds", "From a request to its first token.")
        self.whole = metrics.Histogram("jpo_request_seconds", "From a request to its end.")

    # who may ask

    def authorize(self, request: Request) -> None:
        """401 without the key; 403 for a page of another origin."""
        if from_elsewhere(request):
            raise ApiError("pages of other origins may not ask this server", status=403)
        if self.key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise ApiError("the API key is missing or wrong: send it as Authorization: Bearer KEY", status=401,
                           code="invalid_api_key")  # fmt: skip

    # small routes

    async def health(self, request: Request) -> Response:
        """GET /health."""
        alive = self.models.batcher.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self.authorize(request)
        batcher = self.models.batcher
        lines = [
            *self.requests.lines(),
            *self.first.lines(),
            *self.whole.lines(),
            *metrics.counted(
                "jpo_prompt_tokens_total", "Tokens of prompts that were read.", batcher.counts.prompt_tokens
            ),
            *metrics.counted("jpo_new_tokens_total", "Tokens that were drawn.", batcher.counts.new_tokens),
            *metrics.counted("jpo_cancelled_total", "Requests whose client went away.", batcher.counts.cancelled),
            *metrics.gauge("jpo_streams", "Streams that decode now.", batcher.speaking),
            *metrics.gauge("jpo_waiting", "Requests that have not begun.", batcher.waiting),
            *metrics.gauge("jpo_cache_pages", "Pages of the cache.", batcher.cache.pages),
            *metrics.gauge("jpo_cache_pages_used", "Pages of the cache that hold keys.", batcher.cache.used),
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type=metrics.CONTENT_TYPE)

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.authorize(request)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.models.names]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self.authorize(request)
        return JSONResponse(self._model(self.models.named(request.path_params["name"]).name))

    def _model(self, name: str) -> dict[str, Any]:
        base = self.models.names[0]
        parent = None if name == base else base
        return {"id": name, "object": "model", "created": self.started, "owned_by": "jpo", "parent": parent}

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize {prompt, add_special_tokens}: what the harness asks of a server that has the tokenizer."""
        self.authorize(request)
        given = await json_object(request)
        prompt = given.get("prompt")
        if not isinstance(prompt, str):
            raise ApiError("prompt: expected a text", param="prompt")
        encode = self.models.encode if given.get("add_special_tokens", True) else self.models.lm.tokenizer.encode
        ids = await anyio.to_thread.run_sync(encode, prompt)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.models.batcher.longest})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize {tokens}."""
        self.authorize(request)
        tokens = (await json_object(request)).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in tokens):
            raise ApiError("tokens: expected a list of token ids", param="tokens")
        self.models.check_ids(tokens, "tokens")
        return JSONResponse({"prompt": await anyio.to_thread.run_sync(self.models.lm.tokenizer.decode, tokens)})

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info."""
        self.authorize(request)
        tokenizer = self.models.lm.tokenizer
        special = {name: tokenizer.special.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return JSONResponse({"tokenizer_class": "jpo", **special, "chat_template": tokenizer.chat_template})

    # completions

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        self.authorize(request)
        asked, prompts, echo = openai_forms.completion_asked(await json_object(request))
        model = self.models.named(asked.model)
        encoded = await anyio.to_thread.run_sync(lambda: [self.models.prompt(prompt) for prompt in prompts])
        limit = openai_forms.COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
        requests = [self._request(asked, model.name, ids, limit, score=echo and asked.logprobs) for ids, _ in encoded]
        answer = TextAnswer(self.models, asked, [text if echo else "" for _, text in encoded])
        return await self._answered(request, asked, requests, answer)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        self.authorize(request)
        asked, messages = openai_forms.chat_asked(await json_object(request))
        model = self.models.named(asked.model)
        ids = await anyio.to_thread.run_sync(self.models.chat_prompt, model, messages)
        limit = self.max_new_tokens if asked.max_tokens is None else asked.max_tokens
        requests = [self._request(asked, model.name, ids, limit, score=False)]
        return await self._answered(request, asked, requests, ChatAnswer(self.models, asked))

    def _request(self, asked: Asked, model: str, ids: Sequence[int], limit: int, score: bool) -> streams.Request:
        room = self.models.room(ids, limit)
        return streams.Request(
            model, ids, min(limit, room), asked.n, asked.temperature, asked.top_p, asked.top_k, asked.seed, asked.stops,
            self.models.ends, asked.top, score,
        )  # fmt: skip

    async def _answered(
        self, http: Request, asked: Asked, requests: Sequence[streams.Request], answer: Answer
    ) -> Response:
        running = Running(self.models.batcher, requests, http)
        answer.prompt_tokens = sum(len(request.prompt) for request in requests)
        if asked.stream:
            return StreamingResponse(self._streamed(running, answer), media_type="text/event-stream")
        begun = time.monotonic()
        with running:
            try:
                async for place, event in running.events():
                    self._timed(event, begun)
                    answer.take(place, event)
            except Gone:
                return Response(status_code=_CLOSED)
        self.whole.add(time.monotonic() - begun)
        return JSONResponse(answer.whole())

    def _timed(self, event: Event, begun: float) -> None:
        if isinstance(event, PromptRead):
            self.first.add(time.monotonic() - begun)

    async def _streamed(self, running: Running, answer: Answer) -> AsyncIterator[str]:
        begun = time.monotonic()
        with running:
            try:
                for chunk in answer.beginning():
                    yield _sse(chunk)
                async for place, event in running.events():
                    self._timed(event, begun)
                    for chunk in answer.take(place, event):
                        yield _sse(chunk)
                for chunk in answer.ending():
                    yield _sse(chunk)
                yield "data: [DONE]\n\n"
                self.whole.add(time.monotonic() - begun)
            except Gone:
                return
            except ApiError as error:
                yield _sse(error.body())


def _sse(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


class Answer:
    """An answer while it comes: `take` gives the chunks of a stream, `whole` the answer at the end."""

    kind, chunk_kind, letters = "", "", ""

    def __init__(self, models: Models, asked: Asked, prompts: int):
        self.models, self.asked = models, asked
        self.prompt_tokens = 0
        self.choices = [Choice(index) for index in range(prompts * asked.n)]
        self.head = {
            "id": f"{self.letters}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": models.named(asked.model).fingerprint,
        }

    def take(self, place: int, event: Event) -> list[dict[str, Any]]:
        """What has happened, as chunks."""
        if isinstance(event, PromptRead):
            return self.read(place, event)
        assert isinstance(event, Drawn)
        choice = self.choices[place * self.asked.n + event.sample]
        choice.text += event.text
        choice.finish = event.finish
        tokens = [] if event.token is None else [self.models.shown(event.token)]
        choice.tokens += tokens
        choice.count += len(tokens)
        return [self.chunk(choice, event.text, tokens)] if event.text or event.finish or self.asked.logprobs else []

    def read(self, place: int, event: PromptRead) -> list[dict[str, Any]]:
        """The prompt was read."""
        return []

    def chunk(self, choice: Choice, text: str, tokens: Sequence[TokenText]) -> dict[str, Any]:
        """One chunk of a stream."""
        raise NotImplementedError

    def framed(self, kind: str, choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
        """The head around choices."""
        return {**self.head, "object": kind, "choices": choices, **rest}

    def beginning(self) -> list[dict[str, Any]]:
        """Chunks before any token."""
        return []

    def ending(self) -> list[dict[str, Any]]:
        """Chunks behind all tokens."""
        return [self.framed(self.chunk_kind, [], usage=self.usage())] if self.asked.usage else []

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts and of all choices."""
        return openai_forms.usage(self.prompt_tokens, sum(choice.count for choice in self.choices))

    def whole(self) -> dict[str, Any]:
        """The answer, not streamed."""
        return self.framed(self.kind, [self.choice(choice) for choice in self.choices], usage=self.usage())

    def choice(self, choice: Choice) -> dict[str, Any]:
        """One choice of the whole answer."""
        raise NotImplementedError


class TextAnswer(Answer):
    """Of /v1/completions. echoed: what stands before each prompt's completions."""

    kind = chunk_kind = "text_completion"
    letters = "cmpl"

    def __init__(self, models: Models, asked: Asked, echoed: Sequence[str]):
        super().__init__(models, asked, len(echoed))
        self.echoed = echoed

    def read(self, place: int, event: PromptRead) -> list[dict[str, Any]]:
        """An echo begins with the prompt, its scores where they were asked for."""
        tokens = [self.models.shown(token) for token in event.tokens]
        chunks = []
        for choice in self.choices[place * self.asked.n : (place + 1) * self.asked.n]:
            if self.echoed[place]:
                chunks.append(self.chunk(choice, self.echoed[place], tokens))
                choice.text, choice.tokens = self.echoed[place], list(tokens)
        return chunks

    def _logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any] | None:
        return openai_forms.completion_logprobs(tokens, offset) if self.asked.logprobs else None

    def chunk(self, choice: Choice, text: str, tokens: Sequence[TokenText]) -> dict[str, Any]:
        """One chunk of a stream."""
        logprobs = self._logprobs(tokens, max(0, len(choice.text) - len(text)))
        body = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish or None}
        return self.framed(self.chunk_kind, [body])

    def choice(self, choice: Choice) -> dict[str, Any]:
        """One choice of the whole answer."""
        logprobs = self._logprobs(choice.tokens, 0)
        return {"index": choice.index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish}


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    kind, chunk_kind, letters = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, models: Models, asked: Asked):
        super().__init__(models, asked, 1)

    def _logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any] | None:
        return openai_forms.chat_logprobs(tokens) if self.asked.logprobs else None

    def _delta(self, choice: Choice, delta: dict[str, Any], tokens: Sequence[TokenText]) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        body = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": choice.finish or None}
        return self.framed(self.chunk_kind, [body])

    def beginning(self) -> list[dict[str, Any]]:
        """The role of each choice."""
        return [self._delta(choice, {"role": "assistant", "content": ""}, []) for choice in self.choices]

    def chunk(self, choice: Choice, text: str, tokens: Sequence[TokenText]) -> dict[str, Any]:
        """One chunk of a stream."""
        return self._delta(choice, {"content": text}, tokens)

    def choice(self, choice: Choice) -> dict[str, Any]:
        """One choice of the whole answer."""
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"index": choice.index, "message": message, "logprobs": self._logprobs(choice.tokens),
                "finish_reason": choice.finish}  # fmt: skip


def _refusal(error: Exception) -> ApiError:
    """Any error in OpenAI's form."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Full):
        return ApiError(str(error), status=429, code="rate_limit_exceeded")
    if isinstance(error, HTTPException):
        return ApiError(str(error.detail), status=error.status_code)
    if isinstance(error, JpoError):
        text = str(error)
        param = text.split(":")[0] if text.split(":")[0].isidentifier() else None
        return ApiError(text, status=503 if "shutting down" in text else 400, param=param)
    return ApiError("the server has failed on this request; its log says more", status=500)


async def _refused(request: Request, error: Exception) -> Response:
    refusal = _refusal(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}  # 405: what is allowed
    if isinstance(error, Full):
        headers["retry-after"] = str(error.after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(refusal.body(), refusal.status, headers)


async def _failed(request: Request, error: Exception) -> Response:
    return protected(await _refused(request, error))


def _guard_refusal(text: str, status: int) -> Response:
    return JSONResponse(ApiError(text, status=status).body(), status)


class Counted:
    """ASGI middleware: counts requests by route and status."""

    def __init__(self, app: Any, counter: metrics.Counter, paths: Sequence[str]):
        self.app, self.counter, self.paths = app, counter, frozenset(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self.paths else "other"

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.counter.add(route=route, status=str(message["status"]))
            await send(message)

        await self.app(scope, receive, counted)


def api_routes(api: Api) -> list[Route]:
    """OpenAI's routes and the server's own."""
    return [
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name:path}", api.one_model),
        Route("/v1/completions", api.complete, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/tokenize", api.tokenize, methods=["POST"]),
        Route("/detokenize", api.detokenize, methods=["POST"]),
        Route("/tokenizer_info", api.tokenizer_info),
    ]


def build(api: Api, hosts: list[str], *, prefix: str = "", pages: Sequence[Route | Mount] = ()) -> Starlette:
    """The ASGI application; requests for other hosts than these are refused. The models end with it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(api.models.batcher.close)

    routes: list[Any] = [*api_routes(api), *pages]
    routes.append(openapi.route("jpo serve", routes, prefix))
    paths = [f"{prefix}{route.path}" for route in routes]
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: _refused, JpoError: _refused, Exception: _failed}
    middleware = [
        Middleware(Counted, counter=api.requests, paths=paths),
        Middleware(Guard, rate=None, limit=BODY_LIMIT, refusal=_guard_refusal),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
    ]
    app_routes = [Mount(prefix, routes=routes)] if prefix else routes
    return Starlette(routes=app_routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
