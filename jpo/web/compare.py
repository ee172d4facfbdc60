"""The page of `jpo serve`: two models on one prompt (or each on its own), side by side, with what training changed.

Each side's tokens are drawn by its own model and scored by both, so that the margin of the pair, in JPO's sense, stands
beside the texts while they come; one click makes a preference record of them. Knows HTTP and texts; how tokens come
stands in jpo.batching.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from jpo import streams
from jpo.disk import write_atomic
from jpo.errors import JpoError
from jpo.streams import Drawn, Event, PromptRead
from jpo.web import openai_forms
from jpo.web.models import Models, Variant
from jpo.web.openai_forms import ApiError
from jpo.web.security import cookie_of, from_elsewhere, json_object, session_of, signed
from jpo.web.serve import Gone, Running

HERE = os.path.dirname(os.path.abspath(__file__))
COOKIE = "jpo_compare"
SIDES = ("left", "right")
_REMEMBERED = 256  # comparisons that can still be kept
_FIELDS = ("left", "right", "temperature", "top_p", "top_k", "seed", "max_tokens")


class Records:
    """A JSON Lines file of preference records; one is on disk before its click is acknowledged."""

    def __init__(self, path: str):
        self.path = path
        self._lock = threading.Lock()

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends and syncs."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self._lock, open(self.path, "a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def remove(self, comparison: str) -> None:
        """Takes the record of one comparison out; every other line stays as it is."""
        with self._lock:
            with open(self.path, encoding="utf-8") as file:
                lines = [line for line in file if f'"comparison": "{comparison}"' not in line]

            def put(part: str) -> None:
                with open(part, "w", encoding="utf-8", newline="\n") as out:
                    out.writelines(lines)

            write_atomic(self.path, put)


@dataclass
class Side:
    """One side while it comes. change: log-likelihood under the right model less that under the left one."""

    model: str
    instruction: str
    text: str = ""
    logp: float = 0.0
    change: float = 0.0
    tokens: int = 0
    finish: str = ""


@dataclass
class Comparison:
    """Two sides. beta: of the right model's training."""

    sides: tuple[Side, Side]
    beta: float
    settings: dict[str, Any]
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    kept: str = ""  # the verdict that stands in the records

    @property
    def margin(self) -> float | None:
        """beta times what training changed on the right side less that on the left one; None with one model."""
        left, right = self.sides
        return None if left.model == right.model else self.beta * (right.change - left.change)

    def row(self, verdict: str) -> dict[str, Any]:
        """The preference record."""
        chosen, rejected = self.sides if verdict == "left" else self.sides[::-1]
        return {
            "i_chosen": chosen.instruction,
            "r_chosen": chosen.text,
            "i_reject": rejected.instruction,
            "r_reject": rejected.text,
            "model_chosen": chosen.model,
            "model_reject": rejected.model,
            **self.settings,
            "comparison": self.name,
            "at": round(time.time(), 3),
        }


class Page:
    """The page over the models. key: what its link must carry (None: nothing, loopback)."""

    def __init__(self, models: Models, records: str, *, key: str | None = None, prefix: str = "", max_new_tokens: int):
        self.models, self.records, self.key, self.prefix = models, Records(records), key, prefix
        self.max_new_tokens = max_new_tokens
        self.secret = secrets.token_urlsafe(32)
        self.known: OrderedDict[str, Comparison] = OrderedDict()
        self._keeping = threading.Lock()  # two clicks at once on one comparison write one record
        loader = jinja2.FileSystemLoader(os.path.join(HERE, "templates"))
        self.templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)

    def routes(self) -> list[Route | Mount]:
        """The page's routes."""
        return [
            Route("/", self.home),
            Route("/compare", self.compare, methods=["POST"]),
            Route("/keep", self.keep, methods=["POST"]),
            Mount("/static", StaticFiles(directory=os.path.join(HERE, "static"))),
        ]

    # who may ask

    def checked(self, request: Request) -> None:
        """403 for a change that does not come from our own page."""
        name = session_of(self.secret, request.cookies.get(COOKIE))
        given = request.headers.get("x-csrf-token", "")
        wanted = signed(self.secret, "csrf", name or "")
        if name is None or from_elsewhere(request) or not hmac.compare_digest(given.encode(), wanted.encode()):
            raise HTTPException(403, "the page is out of date: load it again")

    async def home(self, request: Request) -> Response:
        """GET /: the page; the link's key makes the session and leaves the address."""
        name = session_of(self.secret, request.cookies.get(COOKIE))
        if name is None:
            given = request.query_params.get("key", "")
            if self.key is not None and not hmac.compare_digest(given.encode(), self.key.encode()):
                raise HTTPException(401, "use the whole link that jpo serve printed")
            response: Response = RedirectResponse(f"{self.prefix}/", 303)
            response.set_cookie(
                COOKIE, cookie_of(self.secret, secrets.token_hex(8)), path=f"{self.prefix}/", httponly=True,
                samesite="strict", secure=request.url.scheme == "https",
            )  # fmt: skip
            return response
        names = self.models.names
        page = self.templates.get_template("compare.html").render(
            prefix=self.prefix, csrf=signed(self.secret, "csrf", name), names=names, left=names[0], right=names[-1],
            records=self.records.path, most=self.max_new_tokens,
        )  # fmt: skip
        return HTMLResponse(page)

    # a comparison

    def _template(self, own: Variant, other: Variant) -> Variant:
        """Whose template the model reads: its own; the base on its own, beside an adapter, that of the adapter."""
        return other if own.adapter is None and other.adapter is not None else own

    async def compare(self, request: Request) -> Response:
        """POST /compare: both sides, streamed together as lines of JSON."""
        self.checked(request)
        given = await json_object(request)
        models, texts, settings = self._asked(given)
        variants = [self.models.named(name) for name in models]
        others = variants[::-1]
        prompts = [
            await anyio.to_thread.run_sync(
                self.models.chat_prompt, self._template(own, other), [{"role": "user", "content": text}]
            )
            for own, other, text in zip(variants, others, texts, strict=True)
        ]
        two = models[0] != models[1]
        requests = [
            streams.Request(
                models[place], prompt, min(settings["max_tokens"], self.models.room(prompt, settings["max_tokens"])), 1,
                settings["temperature"], settings["top_p"], settings["top_k"], settings["seed"] + (0 if two else place),
                (), self.models.ends, 0, two and prompts[0] != prompts[1], (models[1 - place],) if two else (),
            )
            for place, prompt in enumerate(prompts)
        ]  # fmt: skip
        sides = (Side(models[0], texts[0]), Side(models[1], texts[1]))
        comparison = Comparison(sides, variants[1].beta, settings)
        running = Running(self.models.batcher, requests, request)
        return StreamingResponse(self._lines(running, comparison), media_type="application/x-ndjson")

    def _asked(self, given: Mapping[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
        """(models, instructions, settings); ApiError names what is wrong."""
        openai_forms.check_fields(given, _FIELDS)
        sides: list[dict[str, Any]] = []
        for side in SIDES:
            value = given.get(side)
            parts = {name: value.get(name) for name in ("model", "instruction")} if isinstance(value, dict) else {}
            if not parts or not all(isinstance(part, str) and part.strip() for part in parts.values()):
                raise ApiError(f"{side}: expected a model and an instruction", param=side)
            sides.append(parts)
        asked = openai_forms.asked(
            {**{name: given[name] for name in _FIELDS[2:] if name in given}, "model": sides[0]["model"]},
            openai_forms.COMPLETION_FIELDS, top=None, logprobs=False,
        )  # fmt: skip
        limit = self.max_new_tokens if asked.max_tokens is None else max(1, min(asked.max_tokens, 4096))
        settings = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k, "seed": asked.seed}
        return [s["model"] for s in sides], [s["instruction"] for s in sides], {**settings, "max_tokens": limit}

    async def _lines(self, running: Running, comparison: Comparison) -> AsyncIterator[str]:
        held: list[list[tuple[float, float]]] = [[], []]  # scores of tokens whose text is not certain yet
        with running:
            try:
                async for place, event in running.events():
                    yield json.dumps(self._taken(comparison, place, event, held[place]), ensure_ascii=False) + "\n"
                self._remember(comparison)
                yield json.dumps({"comparison": comparison.name, "margin": comparison.margin}) + "\n"
            except Gone:
                return
            except ApiError as error:
                yield json.dumps(error.body()) + "\n"

    def _taken(
        self, comparison: Comparison, place: int, event: Event, held: list[tuple[float, float]]
    ) -> dict[str, Any]:
        """What has happened on one side, as the page reads it."""
        side, sign = comparison.sides[place], 1 if place else -1
        tokens = event.tokens if isinstance(event, PromptRead) else [event.token] if isinstance(event, Drawn) else []
        scores = [
            (token.logp, sign * (token.logp - token.witnesses[0]) if token.witnesses else 0.0)
            for token in tokens
            if token is not None and token.logp is not None
        ]
        side.change += sum(change for _, change in scores)
        if not isinstance(event, Drawn):
            return {"side": place, "margin": comparison.margin}
        side.logp += sum(logp for logp, _ in scores)
        side.tokens += len(scores)
        side.text += event.text
        side.finish = event.finish
        held += scores
        line = {"side": place, "text": event.text, "finish": event.finish, "margin": comparison.margin,
                "logp": side.logp, "tokens": side.tokens}  # fmt: skip
        if event.text or event.finish:
            line |= {"scores": list(held)}
            held.clear()
        return line

    def _remember(self, comparison: Comparison) -> None:
        self.known[comparison.name] = comparison
        while len(self.known) > _REMEMBERED:
            self.known.popitem(last=False)

    async def keep(self, request: Request) -> Response:
        """POST /keep {comparison, verdict}: left or right makes a record, undo takes it back."""
        self.checked(request)
        given = await json_object(request)
        name, verdict = given.get("comparison"), given.get("verdict")
        if verdict not in (*SIDES, "undo"):
            raise ApiError(f"verdict: expected left, right or undo, got {str(verdict)[:40]!r}", param="verdict")
        comparison = self.known.get(name) if isinstance(name, str) else None
        if comparison is None:
            raise HTTPException(404, "this comparison is not known any more: compare again")
        if verdict != "undo" and not all(side.text.strip() for side in comparison.sides):
            raise HTTPException(409, "nothing is written: an empty answer makes no pair; ask again with another seed")
        await anyio.to_thread.run_sync(self._keep, comparison, verdict)
        return JSONResponse({"kept": comparison.kept})

    def _keep(self, comparison: Comparison, verdict: str) -> None:
        wanted = "" if verdict == "undo" else verdict
        with self._keeping:
            if comparison.kept == wanted:
                return
            try:
                if comparison.kept:
                    self.records.remove(comparison.name)
                    comparison.kept = ""
                if wanted:
                    self.records.add(comparison.row(wanted))
            except OSError as error:
                raise JpoError(f"{self.records.path}: {error.strerror or error}") from None
            comparison.kept = wanted
