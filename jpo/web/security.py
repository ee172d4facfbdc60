"""Who may ask: signed session cookies, CSRF tokens, headers, and bounds on the rate and size of requests.

Knows names and secrets; never items or verdicts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response

COOKIE = "jpo_session"
BODY_LIMIT = 64 << 10  # bytes of a request
BODY_SECONDS = 30.0  # in which its body must arrive
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


def signed(secret: str, purpose: str, text: str) -> str:
    """A short signature of `text` for one purpose."""
    return hmac.new(secret.encode(), f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()[:40]


def session_of(secret: str, cookie: str | None) -> str | None:
    """The annotator's name in a cookie that `cookie_of` made, else None."""
    encoded, _, signature = (cookie or "").partition(".")
    if not hmac.compare_digest(signature.encode(), signed(secret, "session", encoded).encode()):
        return None
    try:
        return bytes.fromhex(encoded).decode()
    except ValueError:
        return None


def cookie_of(secret: str, name: str) -> str:
    """The session cookie of an annotator."""
    encoded = name.encode().hex()
    return f"{encoded}.{signed(secret, 'session', encoded)}"


def address_of(request: HTTPConnection) -> str:
    """Where a request comes from."""
    return request.client.host if request.client else ""


class Bucket:
    """At most `burst` requests at once and `rate` a second, by address; the longest unseen addresses are forgotten."""

    def __init__(self, rate: float, burst: int, addresses: int = 4096):
        self.rate, self.burst, self.addresses = rate, burst, addresses
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, address: str, now: float | None = None) -> float:
        """Requests that this address has left."""
        now = time.monotonic() if now is None else now
        left, at = self._left.get(address, (float(self.burst), now))
        return min(self.burst, left + (now - at) * self.rate)

    def take(self, address: str, now: float | None = None) -> bool:
        """Whether one more request of this address is served."""
        now = time.monotonic() if now is None else now
        left = self.left(address, now)
        self._left.pop(address, None)
        self._left[address] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > self.addresses:
            self._left.popitem(last=False)
        return left >= 1


def protected(response: Response) -> Response:
    """The response with the headers that Guard adds, for what is answered outside of it: an unforeseen fault."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


class Guard:
    """ASGI middleware: security headers on every response, bounds on size (413), rate (429) and on the time that a body
    takes to arrive (408). rate None: no bound on the rate; who: whose requests are counted together."""

    def __init__(self, app: Any, rate: float | None = 30.0, burst: int = 300, limit: int = BODY_LIMIT,
                 refusal: Callable[[str, int], Response] = PlainTextResponse,
                 who: Callable[[HTTPConnection], str] = address_of):  # fmt: skip
        self.app, self.bucket, self.limit = app, None if rate is None else Bucket(rate, burst), limit
        self.refusal, self.who = refusal, who

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in names]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if self.bucket is not None and not self.bucket.take(self.who(HTTPConnection(scope))):
            refused = self.refusal("too many requests: wait a moment", 429)
            refused.headers["retry-after"] = "2"
            await refused(scope, receive, guarded)
            return
        try:
            with anyio.fail_after(BODY_SECONDS):
                body = await _bounded(receive, self.limit)
        except TimeoutError:
            await self.refusal("the request's body did not arrive", 408)(scope, receive, guarded)
            return
        if body is None:
            await self.refusal(f"a request holds at most {self.limit} bytes", 413)(scope, receive, guarded)
            return
        given = False

        async def once() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, once, guarded)


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body, a JSON object; 400 otherwise."""
    try:
        given = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "expected JSON") from None
    if not isinstance(given, dict):
        raise HTTPException(400, "expected a JSON object")
    return given


def from_elsewhere(request: Request) -> bool:
    """Whether a page of another origin sends this: browsers say so, programs say nothing. Behind a proxy the host is
    another than the origin's; what the browser itself says of the two then counts."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("none", "same-origin")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")


async def _bounded(receive: Any, limit: int) -> bytes | None:
    """The request's body, or None where it exceeds the limit."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body"):
            return b"".join(parts)
