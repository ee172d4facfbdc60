"""The pages of `jpo annotate`: entering, one item after the other, an overview, and the records at any moment.

Knows HTTP and HTML; what a verdict means stands in jpo.web.project.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import io
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import anyio
import jinja2
from markdown_it import MarkdownIt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from jpo.errors import JpoError
from jpo.web import openapi
from jpo.web.exchange import exported
from jpo.web.forms import FORMATS, MEDIA, SUFFIXES
from jpo.web.project import Project, item_of
from jpo.web.security import COOKIE, Bucket, Guard, address_of, cookie_of, json_object, protected, session_of, signed
from jpo.web.store import VERDICTS, Answer, Showing

HERE = os.path.dirname(os.path.abspath(__file__))
_WRITE_SECONDS = 20.0  # between two writings of the output file while verdicts come
_WRITE_SHARE = 0.02  # of the time that writing it may take at most
_SWITCH_SECONDS = 5e-4  # after which a thread that writes or counts leaves the interpreter to a click
_LOOK_SECONDS = 1.0  # between two looks whether everything is done
_NAME_LIMIT = 60  # characters
_TEXTS = 4096  # rendered ones that are kept


class Gathered:
    """Calls of many requests, run by `run` in another thread: those that come while it is at work (the disk is slow)
    go together the next time. For one event loop."""

    def __init__(self, run: Callable[[Sequence[Callable[[], Any]]], list[Any]]):
        self._run = run
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._busy = False

    async def __call__(self, call: Callable[[], Any]) -> Any:
        """What the call gives or raises."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if not self._busy:
            self._busy = True
            self._task = asyncio.ensure_future(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                results = await anyio.to_thread.run_sync(self._run, [call for call, _ in taken])
                for (_, future), result in zip(taken, results, strict=True):
                    if future.done():  # its client has gone
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._busy = False


@dataclass(frozen=True)
class Before:
    """What stands before an annotator: an item or None at the end, how far he is, the verdict that he took back."""

    showing: Showing | None
    done: int
    total: int
    seconds: float | None
    more: bool  # another round follows
    undone: Answer | None = None


class Pages:
    """The application over one project. key: what the link must carry (None: nothing, loopback); links: annotators with
    links of their own, to whom entering is then limited; output: written while verdicts come and at the end; when_done:
    called once when nobody has anything left to do; choose: keys of the next round's items (jpo.web.rounds). Where that
    fails, `failure` holds it and when_failed is called."""

    def __init__(
        self,
        project: Project,
        *,
        output: str | None = None,
        key: str | None = None,
        links: dict[str, str] | None = None,
        prefix: str = "",
        when_done: Callable[[], None] | None = None,
        choose: Callable[[], Sequence[str]] | None = None,
    ):
        self.project, self.output, self.key, self.links, self.prefix = project, output, key, dict(links or {}), prefix
        self.secret = project.store.secret("cookies")
        self.entries = Bucket(rate=0.2, burst=10)  # wrong names and passcodes that may be tried
        self.written, self.when_done, self.choose, self.fault = -1, when_done, choose, ""
        self.failure: BaseException | None = None
        self.when_failed: Callable[[], None] = lambda: None
        self.gathered = Gathered(project.together)
        self.shown = functools.lru_cache(_TEXTS)(self._shown)
        self.markdown = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True}).enable(
            ["table", "strikethrough"]
        )
        self.markdown.disable("image")
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(os.path.join(HERE, "templates")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )

    # requests

    def name_of(self, request: Request) -> str | None:
        """The annotator whose session this is."""
        return session_of(self.secret, request.cookies.get(COOKIE))

    def who(self, request: HTTPConnection) -> str:
        """Whose requests are counted together: an annotator's, so that a class behind one address may click at once;
        everybody else's by address."""
        name = session_of(self.secret, request.cookies.get(COOKIE))
        return f"annotator {name}" if name is not None else address_of(request)

    def annotator(self, request: Request) -> str:
        """The same; 401 without one."""
        name = self.name_of(request)
        if name is None:
            raise HTTPException(401, "enter your name first")
        return name

    def csrf(self, name: str) -> str:
        """The token that every change must carry."""
        return signed(self.secret, "csrf", name)

    def checked(self, request: Request, given: str | None) -> str:
        """The annotator of a request that changes something; 403 without the right token."""
        name = self.annotator(request)
        if not hmac.compare_digest((given or "").encode(), self.csrf(name).encode()):
            raise HTTPException(403, "the page is out of date: load it again")
        return name

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A filled-in template."""
        text = self.templates.get_template(template).render(prefix=self.prefix, **values)
        return HTMLResponse(text, status)

    async def refused(self, request: Request, error: Exception) -> Response:
        """What was wrong: a page for a person who followed a link, a line for the page's script and for programs."""
        status = error.status_code if isinstance(error, HTTPException) else 400
        problem = str(getattr(error, "detail", error))
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            reply: Response = self.page("problem.html", status, problem=problem)
        else:
            reply = PlainTextResponse(problem, status)
        reply.headers.update(getattr(error, "headers", None) or {})
        return reply

    def _shown(self, text: str) -> dict[str, str]:
        """A text as people read it: Markdown without HTML or images, its line breaks kept; all else is escaped."""
        return {"html": self.markdown.render(text), "plain": text}

    def before(self, name: str, undone: Answer | None = None) -> Before:
        """What stands before this annotator now."""
        showing = self.project.showing(name)
        return Before(showing, *self.project.progress(name), self.project.more_to_ask(), undone)

    def state(self, name: str, now: Before) -> dict[str, Any]:
        """What the page of this annotator shows now."""
        showing = now.showing
        values: dict[str, Any] = {
            "name": name,
            "csrf": self.csrf(name),
            "guideline": self.shown(self.project.guideline)["html"],
            "done": now.done,
            "total": now.total,
            "seconds": now.seconds,
            "minutes": None if now.seconds is None else max(1, round((now.total - now.done) * now.seconds / 60)),
            "showing": showing,
            "waiting": showing is None and now.more,
            "before": now.undone,
        }
        if showing is not None:
            item = item_of(self.project, showing)
            order = (1, 0) if showing.swapped else (0, 1)
            values |= {
                "joint": item.joint,
                "instructions": [self.shown(item.instruction(side)) for side in order],
                "responses": [self.shown(item.response(side)) for side in order],
            }
        return values

    async def home(self, request: Request) -> Response:
        """GET /: the item that stands before the annotator, or the form to enter."""
        name = self.name_of(request)
        if name is None:
            return self.page("enter.html", key=request.query_params.get("key", ""), problem="", closed=bool(self.links))
        return self.page("item.html", **self.state(name, await self.gathered(lambda: self.before(name))))

    async def enter(self, request: Request) -> Response:
        """POST /enter: name and passcode for a session."""
        if request.headers.get("sec-fetch-site") == "cross-site":  # else it could enter people under a name of its own
            raise HTTPException(403, "pages of other origins may not enter people here")
        form = await request.form()
        name, passcode = (str(form.get(field) or "").strip() for field in ("name", "passcode"))
        key = str(form.get("key") or "")
        problem, status = "", 403
        address = address_of(request)
        if self.entries.left(address) < 1:
            problem, status = "Too many tries; wait half a minute.", 429
        elif self.key is not None and not hmac.compare_digest(key.encode(), self.key.encode()):
            problem = "This link is not complete: use the one that you were given."
        elif self.links:
            problem = "Use the link that you were given."
        elif not name or len(name) > _NAME_LIMIT or any(ord(letter) < 32 for letter in name):
            problem, status = f"Give a name of 1 to {_NAME_LIMIT} characters.", 400
        elif len(passcode) < 4:
            problem, status = "Choose a passcode of at least 4 characters.", 400
        elif not await anyio.to_thread.run_sync(self.project.store.enter, name, passcode):
            problem = "This name is taken, and its passcode is another one."
        if problem:
            self.entries.take(address)  # many people may enter from one address; wrong tries are what is counted
            return self.page("enter.html", status, key=key, problem=problem, closed=bool(self.links))
        return self.session(request, name)

    async def link(self, request: Request) -> Response:
        """GET /a/LINK: the session of an annotator with a link of his own."""
        given = request.path_params["link"]
        for name, secret in self.links.items():
            if hmac.compare_digest(given.encode(), secret.encode()):
                await anyio.to_thread.run_sync(self.project.store.enter, name, secret)
                return self.session(request, name)
        if not self.entries.take(address_of(request)):
            raise HTTPException(429, "too many tries")
        raise HTTPException(404, "no annotator has this link")

    def session(self, request: Request, name: str) -> Response:
        """Home with the annotator's cookie."""
        response = RedirectResponse(f"{self.prefix}/", 303)
        response.set_cookie(
            COOKIE, cookie_of(self.secret, name), max_age=30 * 86400, path=f"{self.prefix}/", httponly=True,
            samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    async def leave(self, request: Request) -> Response:
        """POST /leave: ends the session."""
        form = await request.form()
        self.checked(request, str(form.get("csrf") or ""))
        response = RedirectResponse(f"{self.prefix}/", 303)
        response.delete_cookie(COOKIE, path=f"{self.prefix}/")
        return response

    async def verdict(self, request: Request) -> Response:
        """POST /verdict: keeps one verdict, then gives the next item as a fragment of HTML."""
        given = await json_object(request)
        name = self.checked(request, request.headers.get("x-csrf-token"))
        showing, seconds = given.get("showing"), given.get("seconds", 0)
        if isinstance(showing, bool) or not isinstance(showing, int) or abs(showing) >= 1 << 62:
            raise HTTPException(400, "showing: expected a whole number")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e7:
            raise HTTPException(400, "seconds: expected a number from 0")
        words, tags = given.get("rationale", ""), given.get("tags", [])
        if given.get("verdict") not in VERDICTS or not isinstance(words, str) or not isinstance(tags, list):
            raise HTTPException(400, f"verdict: expected one of {', '.join(VERDICTS)}, with a text and tags")

        def keep() -> tuple[bool, Before]:
            new = self.project.answer(name, showing, given["verdict"], words, tags, seconds)
            return new, self.before(name)

        new, now = await self.gathered(keep)
        return self.fragment(self.state(name, now), kept=new)

    async def undo(self, request: Request) -> Response:
        """POST /undo: the annotator's last verdict is taken back and stands before him again."""
        name = self.checked(request, request.headers.get("x-csrf-token"))
        now = await self.gathered(lambda: self.before(name, self.project.undo(name)))
        return self.fragment(self.state(name, now), kept=now.undone is not None)

    def fragment(self, values: dict[str, Any], kept: bool) -> JSONResponse:
        """The changed part of the page."""
        html = self.templates.get_template("work.html").render(prefix=self.prefix, **values)
        return JSONResponse({"kept": kept, "html": html})

    # the overview

    def owner(self, request: Request) -> None:
        """The overview and the records are for whoever holds the key; on loopback (no key) for everybody there."""
        given = request.query_params.get("key") or request.headers.get("x-key") or ""
        if self.key is not None and not hmac.compare_digest(given.encode(), self.key.encode()):
            raise HTTPException(403, "the overview needs the key that jpo annotate printed")

    async def overview(self, request: Request) -> Response:
        """GET /overview: progress, quality of each annotator, agreement and interplay."""
        self.owner(request)
        quality = await anyio.to_thread.run_sync(self.project.quality)
        agreement = await anyio.to_thread.run_sync(self.project.view, "agreement", self.project.agreement)
        interplay = await anyio.to_thread.run_sync(self.project.view, "interplay", self.project.interplay)
        done = len({answer.showing.item for answer in self.project.answers()})
        return self.page(
            "overview.html", quality=quality, agreement=agreement, interplay=interplay, done=done,
            total=len(self.project.items), forms=FORMATS, key=request.query_params.get("key", ""), rules=self.project.rules,
        )  # fmt: skip

    async def figure(self, request: Request) -> Response:
        """GET /interplay.svg: the paper's figures 2 and 3 over what has come in."""
        self.owner(request)
        drawn = await anyio.to_thread.run_sync(self.project.view, "figure", self._figure)
        if drawn is None:
            raise HTTPException(404, "no joint verdict between labelled items yet")
        return Response(drawn, media_type="image/svg+xml")

    def _figure(self) -> bytes | None:
        found = self.project.interplay()
        return None if found is None else _svg(found)

    async def export(self, request: Request) -> Response:
        """GET /feedback.jsonl: the records at this moment; ?format= gives another form of them."""
        self.owner(request)
        form = request.query_params.get("format", "feedback")
        if form not in FORMATS:
            raise HTTPException(400, f"format: expected one of {', '.join(FORMATS)}")
        text = await anyio.to_thread.run_sync(lambda: exported(self.project.rows(), form))
        stem = os.path.splitext(os.path.basename(self.output or "feedback"))[0].replace('"', "")
        name = stem + ("" if form == "feedback" else f"-{form}") + SUFFIXES[form]
        return Response(
            text.encode("utf-8", "backslashreplace"),
            media_type=f"{MEDIA[SUFFIXES[form]]}; charset=utf-8",
            headers={"content-disposition": f"attachment; filename*=UTF-8''{quote(name)}"},
        )

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return JSONResponse({"status": "ok", "items": len(self.project.items)})

    # the output file

    def save(self) -> None:
        """Writes the output file where it is behind."""
        version = self.project.version
        if self.output is not None and self.written != version:
            self.project.write(self.output)
            self.written = version

    def try_save(self) -> None:
        """The same; a fault of the disk is said once and tried again: verdicts are kept elsewhere, and go on coming."""
        try:
            self.save()
            self.fault = ""
        except JpoError as error:
            if self.fault != str(error):
                self.fault = str(error)
                print(f"jpo annotate: {self.fault}", file=sys.stderr)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Writes the output file from time to time and once more at the end."""

        async def now_and_then() -> None:
            pause = _WRITE_SECONDS
            while True:
                await anyio.sleep(pause)
                start = time.monotonic()
                await anyio.to_thread.run_sync(self.try_save)
                pause = max(_WRITE_SECONDS, (time.monotonic() - start) / _WRITE_SHARE)

        async def until_done() -> None:
            while self.when_done is not None:
                await anyio.sleep(_LOOK_SECONDS)
                if await anyio.to_thread.run_sync(self.project.finished):
                    await anyio.sleep(_LOOK_SECONDS)  # the last page is on its way
                    self.when_done()
                    break

        async def rounds() -> None:
            while self.choose is not None:
                await anyio.sleep(_LOOK_SECONDS)
                if await anyio.to_thread.run_sync(self.project.round_is_over):
                    try:
                        keys = await anyio.to_thread.run_sync(self.choose, abandon_on_cancel=True)
                        await anyio.to_thread.run_sync(self.project.release, keys)
                    except Exception as error:
                        self.failure = error
                        self.when_failed()
                        break

        usual = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        async with anyio.create_task_group() as group:
            group.start_soon(now_and_then)
            group.start_soon(rounds)
            group.start_soon(until_done)
            try:
                yield
            finally:
                group.cancel_scope.cancel()
                sys.setswitchinterval(usual)
        self.try_save()


def _svg(interplay: dict[str, Any]) -> bytes:
    from jpo import plots

    file = io.BytesIO()
    figure = plots.interplay(interplay)
    figure.savefig(file, format="svg")
    return file.getvalue()


async def _failed(request: Request, error: Exception) -> Response:
    return protected(PlainTextResponse("the server has failed on this request; its log says more", 500))


async def _not_kept(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"nothing was kept, the server's disk failed ({error}); send it again", 503)


def build(pages: Pages, hosts: list[str]) -> Starlette:
    """The ASGI application; requests for other hosts than these are refused (DNS rebinding)."""
    routes: list[BaseRoute] = [
        Route("/", pages.home),
        Route("/enter", pages.enter, methods=["POST"]),
        Route("/a/{link}", pages.link),
        Route("/leave", pages.leave, methods=["POST"]),
        Route("/verdict", pages.verdict, methods=["POST"]),
        Route("/undo", pages.undo, methods=["POST"]),
        Route("/overview", pages.overview),
        Route("/interplay.svg", pages.figure),
        Route("/feedback.jsonl", pages.export),
        Route("/health", pages.health),
        Mount("/static", StaticFiles(directory=os.path.join(HERE, "static"))),
    ]
    routes.append(openapi.route("jpo annotate", routes, pages.prefix))
    inner = Starlette(
        routes=[Mount(pages.prefix, routes=routes)] if pages.prefix else routes,
        lifespan=pages.lifespan,
        exception_handlers={
            HTTPException: pages.refused,
            JpoError: pages.refused,
            sqlite3.Error: _not_kept,
            OSError: _not_kept,
            Exception: _failed,
        },
        middleware=[Middleware(Guard, who=pages.who), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )
    return inner
