"""A judge on an OpenAI-compatible server: bounded in time and size, rate limits obeyed, its key written nowhere.

Every way in which a request can go wrong surfaces as JudgeFault, one attempt; retries are the acquisition's. What a
server refuses of a request (a temperature, max_tokens by that name) is met once, said, left out or renamed, and
remembered. The transport, with its bounds on what is decoded and where a request may go, stands in
jpo.feedback.transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import os
import re
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from typing import Any

from jpo.defaults import MAX_TOKENS
from jpo.errors import JpoError, MissingExtra
from jpo.feedback.protocol import JudgeFault, Reply
from jpo.feedback.replies import parse_reply
from jpo.feedback.transport import MAX_REPLY_BYTES, bounded_client

MAX_WAIT = 60.0  # seconds; a server that asks for more is not obeyed (as the openai client does): we back off ourselves
MOST_TOKENS = 1 << 40  # that a server may say it used; more is not believed
_SECRET_RUN = 6  # characters of the key, one after the other, that must not stand in a kept reply
# what may be refused -> what is sent instead; None: nothing
_INSTEAD: Mapping[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": None,
    "temperature": None,
}
# what an answer's status usually means, where the user can mend it
_LIKELY = {
    401: ": the server does not take the key in OPENAI_API_KEY",
    403: ": the key in OPENAI_API_KEY does not give access",
    404: ": no such address or model there; most addresses for --base-url end in /v1",
}
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_MISSING = "the judge 'openai' needs the openai package: pip install 'jpo[judge]'"


def server_name(base_url: str | None, model: str) -> str:
    """The annotator's name of a model on a server."""
    return f"openai:{_address(base_url)}:{model}"


def _address(base_url: str | None) -> str:
    """The server's address, which stands in every record: JpoError where it carries credentials, whose text is not
    shown."""
    address = (base_url or "https://api.openai.com/v1").rstrip("/")
    try:
        parts = urllib.parse.urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise JpoError("--base-url: not an address; expected one such as http://localhost:8000/v1") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise JpoError(
            "--base-url: a user, a password or a query (?key=...) would reach every record and the journal; give the address "
            "alone, and the key as OPENAI_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise JpoError(f"--base-url: expected http:// or https:// and a host, got {address!r:.80}")
    return address


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

    timeout: seconds for one request, its body included. temperature, max_tokens: sent with each request, None: left
        out.
    refused: what the server is known to refuse, as jpo.feedback.journal keeps it between runs."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        timeout: float,
        *,
        temperature: float | None = 0.0,
        max_tokens: int | None = MAX_TOKENS,
        answers: tuple[str, ...] = ("A", "B", "tie"),
    ):
        try:
            import openai  # noqa: F401 (fails early)
        except ImportError:
            raise MissingExtra(_MISSING) from None
        self.base_url = _address(base_url)
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise JpoError(
                "the judge 'openai' reads its key from the environment: set OPENAI_API_KEY (any text for a local server)"
            )
        self._key, self.model, self.timeout, self.answers = key, model, timeout, answers
        self.name = server_name(base_url, model)
        sent = {"temperature": temperature, "max_tokens": max_tokens}
        self._settings = {name: value for name, value in sent.items() if value is not None}
        self.refused: dict[str, str | None] = {}
        self._tried = False  # the first request has ended: what the server refuses is known
        self._first: asyncio.Lock | None = None
        self._client: Any = None
        self._loop: Any = None  # connections belong to the event loop that opened them

    def _openai(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            import openai

            self._client = openai.AsyncOpenAI(
                api_key=self._key,
                base_url=self.base_url,
                max_retries=0,
                timeout=self.timeout,
                http_client=bounded_client(self.base_url),
            )
            self._loop, self._first = loop, asyncio.Lock()
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
            async with self._turn():
                return await asyncio.wait_for(self._adapted(prompt), self.timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise JudgeFault(f"no whole reply within {self.timeout:g} s") from None
        except JudgeFault:
            raise
        except openai.APIStatusError as error:
            likely = _LIKELY.get(error.status_code, "")
            raise JudgeFault(f"HTTP status {error.status_code}{likely}", asked_wait(error.response.headers)) from None
        except openai.OpenAIError as error:
            where = f" at {self.base_url}" if isinstance(error, openai.APIConnectionError) else ""
            cause = error.__cause__
            raise JudgeFault(str(cause) if isinstance(cause, JudgeFault) else type(error).__name__ + where) from None
        except (
            Exception
        ) as error:  # malformed bodies surface as many kinds; the text could hold anything: name the kind
            raise JudgeFault(f"malformed reply ({type(error).__name__})") from None

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The first request goes alone, so that a refusal is met once and not by every slot; the others wait for its
        end, however it ends."""
        self._openai()
        assert self._first is not None
        if self._tried:
            yield
            return
        async with self._first:
            if not self._tried:
                try:
                    yield
                finally:
                    self._tried = True
                return
        yield

    async def _adapted(self, prompt: str) -> Reply:
        """The request, without what the server refuses."""
        import openai

        while True:
            settings = self._sent()
            try:
                return await self._request(prompt, settings)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                name = refused_setting(error, settings)
                if name is None:
                    raise
                self._drop(name)

    def _sent(self) -> dict[str, Any]:
        """The settings of a request under the names that the server takes."""
        sent = {}
        for name, value in self._settings.items():
            current: str | None = name
            while current is not None and current in self.refused:
                current = self.refused[current]
            if current is not None:
                sent[current] = value
        return sent

    def _drop(self, name: str) -> None:
        if name in self.refused:
            return  # another slot has met it
        instead = self.refused[name] = _INSTEAD[name]
        what = f"sending {instead} instead" if instead else "leaving it out"
        print(f"jpo: {self.name} refuses {name}: {what}", file=sys.stderr, flush=True)

    async def _request(self, prompt: str, settings: Mapping[str, Any]) -> Reply:
        """The body is read in pieces, so that an endless one ends at the bound."""
        messages: list[Any] = [{"role": "user", "content": str(prompt)}]
        call = self._openai().chat.completions.with_streaming_response.create(
            model=self.model, messages=messages, **settings
        )
        async with call as response:
            body = bytearray()
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_REPLY_BYTES:
                    raise JudgeFault(f"reply larger than {MAX_REPLY_BYTES} bytes")
            headers = response.headers
        data = json.loads(bytes(body))
        choice = data["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise JudgeFault("reply without text")
        if not text.strip() and choice.get("finish_reason") == "length":
            raise JudgeFault(
                "the bound on its tokens ended the reply before it began: raise --judge-max-tokens, or 0 for none"
            )
        clean = without_key(text, self._key)  # a server that echoes it must not get it into the journal
        if clean != text:
            text = parse_reply(text, self.answers) or clean
        used = data.get("usage")
        prompt_tokens, completion_tokens, total = (
            _count(used, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        prompt_tokens = prompt_tokens or max(total - completion_tokens, 0)
        wait = rate_limit_wait(headers, max(prompt_tokens + completion_tokens, 1))
        return Reply(text, prompt_tokens, completion_tokens, wait)

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.model!r}, {self.base_url!r})"


def refused_setting(error: Any, settings: Mapping[str, Any]) -> str | None:
    """Which of the settings a refusal of the request is about; None for any other refusal."""
    given = getattr(error, "body", None)
    body = given if isinstance(given, dict) else {}
    stated = body.get("param")
    if isinstance(stated, str) and stated in settings:
        return stated
    # OpenAI's message; what else a server says ({"detail": [...]}, plain text) as it stands
    said = str(body.get("message") or given or getattr(error, "message", ""))[:2000].lower()
    doubted = re.search(
        r"unsupported|not support|unrecognized|unknown|unexpected|extra|not permitted|invalid|deprecated|must be|only",
        said,
    )
    named = [name for name in settings if re.search(rf"\b{name}\b", said)]
    return min(named, key=said.index) if doubted and named else None


def without_key(text: str, key: str) -> str:
    """The text, or a note in its place where it holds the key or several characters of it one after the other, whatever
    stands between them."""
    kept, secret = (re.sub(r"[^0-9a-z]", "", part.lower()) for part in (text, key))
    runs = {secret[at : at + _SECRET_RUN] for at in range(len(secret) - _SECRET_RUN + 1)}
    if (len(key) >= _SECRET_RUN - 2 and key in text) or any(run in kept for run in runs):
        return "[a reply with parts of the key; not kept]"
    return text


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MOST_TOKENS else 0
