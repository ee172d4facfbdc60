"""The HTTP client of a server's judge: what a body may hold once decoded, and where a request may go.

The openai package's own client, with hooks: a body is decoded here, in pieces, up to a bound, those of errors too; a
redirect to another host is refused, because the prompt would travel there. Knows HTTP; never prompts or verdicts.
"""

from __future__ import annotations

import importlib
import urllib.parse
import zlib
from collections.abc import AsyncIterator
from typing import Any

from jpo.feedback.protocol import JudgeFault

MAX_REPLY_BYTES = 1 << 20
_ZLIB = 47  # window bits: zlib and gzip, told apart by their heads


class Decoded:
    """Bytes in, decoded bytes out, at most MAX_REPLY_BYTES of them in all; JudgeFault beyond, and for what cannot be
    decoded within a bound: a coding over another one, or one that zlib does not know."""

    def __init__(self, coding: str):
        self.left = MAX_REPLY_BYTES
        coding = coding.strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise JudgeFault(f"a body encoded as {coding[:40]!r} is not decoded")
        self._inflate = zlib.decompressobj(_ZLIB) if coding not in ("", "identity") else None

    def piece(self, data: bytes) -> bytes:
        """The next bytes."""
        if self._inflate is not None:
            try:
                data = self._inflate.decompress(data, self.left + 1)
            except zlib.error:
                raise JudgeFault("malformed reply (its encoding)") from None
        self.left -= len(data)
        if self.left < 0:
            raise JudgeFault(f"reply larger than {MAX_REPLY_BYTES} bytes")
        return data


def bounded_client(base_url: str) -> Any:
    """An asynchronous client for requests to one host."""
    import openai

    client = openai.DefaultAsyncHttpxClient()
    roots = [base.__module__.split(".")[0] for base in type(client).__mro__]
    library: Any = importlib.import_module(next(name for name in roots if name.startswith("httpx")))

    class Bounded(library.AsyncByteStream):  # type: ignore[misc,name-defined]
        def __init__(self, inner: Any, decoded: Decoded):
            self.inner, self.decoded = inner, decoded

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in self.inner:
                yield self.decoded.piece(piece)

        async def aclose(self) -> None:
            await self.inner.aclose()

    async def bound(response: Any) -> None:
        decoded = Decoded(response.headers.get("content-encoding", ""))
        response.headers.pop("content-encoding", None)  # the client's own decoders know no bound
        response.stream = Bounded(response.stream, decoded)

    async def at_home(request: Any) -> None:
        if not _same_host(base_url, str(request.url)):
            raise JudgeFault("the server redirects to another host; refused, because the prompt would travel there")

    client.headers["accept-encoding"] = "gzip, deflate"
    client.event_hooks = {"request": [at_home], "response": [bound]}
    return client


def _same_host(base_url: str, url: str) -> bool:
    """Whether `url` is on the host and port of `base_url`, or the same host's https on its usual port."""
    home, there = urllib.parse.urlsplit(base_url), urllib.parse.urlsplit(url)
    usual = {"http": 80, "https": 443}
    ports = [parts.port or usual.get(parts.scheme, 0) for parts in (home, there)]
    upgraded = (home.scheme, there.scheme, *ports) == ("http", "https", 80, 443)
    downgraded = (home.scheme, there.scheme) == ("https", "http")
    return home.hostname == there.hostname and not downgraded and (ports[0] == ports[1] or upgraded)
