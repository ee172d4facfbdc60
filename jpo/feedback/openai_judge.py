"""A judge on an OpenAI-compatible server: bounded in time and size, rate limits obeyed, its key written nowhere.

Every way in which a request can go wrong surfaces as JudgeFault, one attempt; retries are the acquisition's.
"""

from __future__ import annotations

import asyncio
import email.utils
import importlib
import json
import math
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from jpo.errors import JpoError, MissingExtra
from jpo.feedback.prompts import parse_reply
from jpo.feedback.protocol import JudgeFault, Reply

MAX_REPLY_BYTES = 1 << 20
MAX_WAIT = 60.0  # seconds; a server that asks for more is not obeyed (as the openai client does): we back off ourselves
_ENCODED_BYTES = MAX_REPLY_BYTES >> 4  # of a compressed body, which may grow a thousandfold
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_MISSING = "the judge 'openai' needs the openai package: pip install 'jpo[judge]'"


def server_name(base_url: str | None, model: str) -> str:
    """The annotator's name of a model on a server."""
    return f"openai:{_address(base_url)}:{model}"


def _address(base_url: str | None) -> str:
    return (base_url or "https://api.openai.com/v1").rstrip("/")


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header (seconds or an HTTP date) asks for, at least 0; None if unreadable or above
    MAX_WAIT."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return _bounded(seconds)


def _bounded(seconds: float) -> float | None:
    return max(seconds, 0.0) if math.isfinite(seconds) and seconds <= MAX_WAIT else None


def reset_after(value: str | None) -> float | None:
    """Seconds out of "6m0s", "1.5s", "20ms" or a plain number, as x-ratelimit-reset-* headers give them."""
    if not value:
        return None
    found = _DURATION.fullmatch(value.strip())
    if found and any(found.groups()):
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
        return _bounded(3600 * hours + 60 * minutes + seconds + milliseconds / 1000)
    return retry_after(value)


def rate_limit_wait(headers: Mapping[str, str], tokens: int = 1) -> float:
    """Seconds until the next request may go out, by x-ratelimit-remaining-* and -reset-*; 0 where nothing is exhausted.

    tokens: what a request costs; fewer remaining tokens count as exhausted."""
    wait = 0.0
    for what, needed in (("requests", 1), ("tokens", tokens)):
        try:
            remaining = float(headers.get(f"x-ratelimit-remaining-{what}", "inf"))
        except ValueError:
            continue
        if remaining < needed:
            wait = max(wait, reset_after(headers.get(f"x-ratelimit-reset-{what}")) or 0.0)
    return wait


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a refusal asks for: retry-after-ms, Retry-After, else what is exhausted; None if it says nothing."""
    try:
        exact = float(headers.get("retry-after-ms", "")) / 1000
    except ValueError:
        exact = math.inf
    found = _bounded(exact) if math.isfinite(exact) else None
    found = retry_after(headers.get("retry-after")) if found is None else found
    return found if found is not None else rate_limit_wait(headers) or None


class OpenAIJudge:
    """A model on an OpenAI-compatible server, temperature 0; the key comes from OPENAI_API_KEY and is written nowhere.

    timeout: seconds for one request, its body included."""

    def __init__(self, model: str, base_url: str | None, timeout: float):
        try:
            import openai  # noqa: F401 (fails early)
        except ImportError:
            raise MissingExtra(_MISSING) from None
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise JpoError(
                "the judge 'openai' reads its key from the environment: set OPENAI_API_KEY (any text for a local server)"
            )
        self._key, self.model, self.timeout = key, model, timeout
        self.base_url = _address(base_url)
        self.name = server_name(base_url, model)
        self._client: Any = None
        self._loop: Any = None  # connections belong to the event loop that opened them

    def _openai(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            import openai

            self._client = openai.AsyncOpenAI(
                api_key=self._key, base_url=self.base_url, max_retries=0, timeout=self.timeout, http_client=_http()
            )
            self._loop = loop
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            client, self._client = self._client, None
            await client.close()

    async def ask(self, prompt: str) -> Reply:
        """One request; JudgeFault for every fault of network, server or body."""
        import openai

        try:
            return await asyncio.wait_for(self._request(prompt), self.timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise JudgeFault(f"no whole reply within {self.timeout:g} s") from None
        except JudgeFault:
            raise
        except openai.APIStatusError as error:
            raise JudgeFault(f"HTTP status {error.status_code}", asked_wait(error.response.headers)) from None
        except openai.OpenAIError as error:
            raise JudgeFault(type(error).__name__) from None
        except (
            Exception
        ) as error:  # malformed bodies surface as many kinds; the text could hold anything: name the kind
            raise JudgeFault(f"malformed reply ({type(error).__name__})") from None

    async def _request(self, prompt: str) -> Reply:
        """The body is read in pieces, so that an endless one ends at the bound."""
        messages: list[Any] = [{"role": "user", "content": prompt}]
        call = self._openai().chat.completions.with_streaming_response.create(
            model=self.model, messages=messages, temperature=0, max_tokens=8
        )
        async with call as response:
            body = bytearray()
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_REPLY_BYTES:
                    raise JudgeFault(f"reply larger than {MAX_REPLY_BYTES} bytes")
            headers = response.headers
        data = json.loads(bytes(body))
        text = data["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise JudgeFault("reply without text")
        if parse_reply(text) is None:
            text = text.replace(self._key, "[key]")  # a server that echoes it must not get it into the journal
        used = data.get("usage")
        prompt_tokens, completion_tokens, total = (
            _count(used, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        prompt_tokens = prompt_tokens or max(total - completion_tokens, 0)
        wait = rate_limit_wait(headers, max(prompt_tokens + completion_tokens, 1))
        return Reply(text, prompt_tokens, completion_tokens, wait)

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.model!r}, {self.base_url!r})"


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _http() -> Any:
    """The openai package's own HTTP client, over a transport whose bodies end at the bound, those of errors too."""
    import openai

    client = openai.DefaultAsyncHttpxClient()
    roots = [base.__module__.split(".")[0] for base in type(client).__mro__]
    library: Any = importlib.import_module(next(name for name in roots if name.startswith("httpx")))

    class Bounded(library.AsyncByteStream):  # type: ignore[misc,name-defined]
        def __init__(self, inner: Any, limit: int):
            self.inner, self.limit = inner, limit

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for piece in self.inner:
                size += len(piece)
                if size > self.limit:
                    raise JudgeFault(f"reply larger than {self.limit} bytes")
                yield piece

        async def aclose(self) -> None:
            await self.inner.aclose()

    async def bound(response: Any) -> None:
        limit = _ENCODED_BYTES if "content-encoding" in response.headers else MAX_REPLY_BYTES
        response.stream = Bounded(response.stream, limit)

    client.event_hooks = {"response": [bound]}
    return client
