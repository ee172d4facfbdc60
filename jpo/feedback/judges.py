"""Judges behind one small protocol: an OpenAI-compatible server, a local model, a Python callable.

A judge has a `name` (part of the journal's key) and `async ask(prompt) -> Reply`; a fault is raised as JudgeFault, which
may say how long to wait. Knows prompts; never records.
"""

from __future__ import annotations

import asyncio
import email.utils
import importlib
import inspect
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from jpo.errors import JpoError, MissingExtra
from jpo.feedback.prompts import VERSION

MAX_REPLY_BYTES = 1 << 20
MAX_WAIT = 60.0  # seconds: the longest that a server's Retry-After is obeyed


@dataclass(frozen=True)
class Reply:
    """A judge's raw reply and the tokens that it cost."""

    text: str
    tokens: int = 0


class JudgeFault(Exception):
    """An attempt that brought no reply; `wait`: seconds that the server asks for."""

    def __init__(self, problem: str, wait: float | None = None):
        super().__init__(problem)
        self.wait = wait


class Judge(Protocol):
    """What acquisition needs."""

    name: str

    async def ask(self, prompt: str) -> Reply:
        """One attempt."""


class CallableJudge:
    """module:function, called with the prompt's text; returns "A", "B" or "tie" (or an awaitable of it)."""

    def __init__(self, function: Callable[[str], Any], name: str):
        self.function, self.name = function, name

    @classmethod
    def named(cls, spec: str) -> CallableJudge:
        """From "module:function"."""
        module, _, attribute = spec.partition(":")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise JpoError(f"judge {spec!r}: {error}; expected module:function that can be imported") from None
        return cls(function, f"callable:{spec}")

    async def ask(self, prompt: str) -> Reply:
        try:
            result = self.function(prompt)
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:
            raise JudgeFault(f"{type(error).__name__}: {error}") from None
        return Reply(str(result))


class LocalJudge:
    """A model of ours: the answer of the highest log-likelihood."""

    def __init__(self, lm: Any):
        self.lm, self.name = lm, f"local:{lm.source}"

    async def ask(self, prompt: str) -> Reply:
        answers = ["A", "B", "tie"]
        scores = self.lm.sequence_logps(
            [f"{prompt}\n\nAnswer:"] * 3, [f" {answer}" for answer in answers], add_eos=False
        )
        return Reply(answers[int(scores.argmax())])


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header (seconds or an HTTP date) asks for, within 0..MAX_WAIT; None if unreadable."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_WAIT) if math.isfinite(seconds) else None


class OpenAIJudge:
    """An OpenAI-compatible server; the key comes from OPENAI_API_KEY and is written nowhere."""

    def __init__(self, model: str, base_url: str | None, timeout: float):
        try:
            import httpx2 as http
        except ImportError:
            try:
                import httpx as http  # type: ignore[no-redef]
            except ImportError:
                raise MissingExtra("the judge 'openai' needs the openai package: pip install 'jpo[judge]'") from None
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise JpoError(
                "the judge 'openai' reads its key from the environment: set OPENAI_API_KEY (any text for a local server)"
            )
        self._key, self.model, self.timeout, self._http = key, model, timeout, http
        self.base_url = (base_url or "https://api.openai.com/v1").rstrip("/")
        self.name = f"openai:{self.base_url}:{model}"
        self._client: Any = None

    def _openai(self) -> Any:
        if self._client is None:
            try:
                import openai
            except ImportError:
                raise MissingExtra("the judge 'openai' needs the openai package: pip install 'jpo[judge]'") from None
            self._client = openai.AsyncOpenAI(
                api_key=self._key, base_url=self.base_url, max_retries=0, timeout=self.timeout
            )
        return self._client

    async def ask(self, prompt: str) -> Reply:
        import openai

        try:
            return await asyncio.wait_for(self._request(prompt), self.timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise JudgeFault(f"no whole reply within {self.timeout:g} s") from None
        except JudgeFault:
            raise
        except openai.APIStatusError as error:
            raise JudgeFault(
                f"HTTP status {error.status_code}", retry_after(error.response.headers.get("retry-after"))
            ) from None
        except openai.OpenAIError as error:
            raise JudgeFault(type(error).__name__) from None
        except (
            Exception
        ) as error:  # a malformed body surfaces as many kinds; its text could hold anything: name the kind
            raise JudgeFault(f"malformed reply ({type(error).__name__})") from None

    async def _request(self, prompt: str) -> Reply:
        """The body is read in pieces, so that an endless one ends at the bound."""
        import json

        client = self._openai()
        messages: list[Any] = [{"role": "user", "content": prompt}]
        call = client.chat.completions.with_streaming_response.create(
            model=self.model, messages=messages, temperature=0, max_tokens=8
        )
        async with call as response:
            body = bytearray()
            async for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_REPLY_BYTES:
                    raise JudgeFault(f"reply larger than {MAX_REPLY_BYTES} bytes")
        data = json.loads(bytes(body))
        text = data["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise JudgeFault("reply without text")
        usage = data.get("usage") or {}
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else 0
        return Reply(text, tokens if isinstance(tokens, int) else 0)

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.model!r}, {self.base_url!r})"


def make_judge(spec: str, *, base_url: str | None = None, model: str | None = None, timeout: float = 60.0) -> Judge:
    """The judge of --judge: "openai", "local" or "module:function"."""
    if spec == "openai":
        if not model:
            raise JpoError("--judge openai needs --model, the name of the model on the server")
        return OpenAIJudge(model, base_url, timeout)
    if spec == "local":
        import jpo

        return LocalJudge(jpo.load(model or "smollm2-135m"))
    if ":" in spec:
        return CallableJudge.named(spec)
    raise JpoError(f"judge: expected openai, local or module:function, got {spec!r}")


__all__ = [
    "VERSION",
    "CallableJudge",
    "Judge",
    "JudgeFault",
    "LocalJudge",
    "OpenAIJudge",
    "Reply",
    "make_judge",
    "retry_after",
]
