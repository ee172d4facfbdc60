"""OpenAI's forms of requests, answers and errors, for text and chat completions. Knows JSON; never models or HTTP.

Every field is checked, and what would be ignored is refused by name. Beside OpenAI's own there is top_k.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jpo.errors import JpoError

MOST_TOP = 20  # alternatives of a token
MOST_STOPS = 16
MOST_N = 128
MOST_PROMPTS = 512
COMPLETION_TOKENS = 16  # of a text completion that does not say, as OpenAI has it
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# fields that change nothing here, and those that are refused unless they hold one of these values
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "ignore_eos": (None, False),
}
_IGNORED = ("user", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
_COMMON = ("model", "stream", "stream_options", "stop", "temperature", "top_p", "top_k", "max_tokens", "seed", "n")
COMPLETION_FIELDS = (*_COMMON, "prompt", "echo", "logprobs")
CHAT_FIELDS = (*_COMMON, "messages", "logprobs", "top_logprobs", "max_completion_tokens")


class ApiError(JpoError):
    """An error in OpenAI's form: status, and {"error": {message, type, param, code}}."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error",
                 429: "rate_limit_error", 503: "server_error", 500: "server_error"}  # fmt: skip
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """What both kinds of requests share. max_tokens None: the server's; seed None: a new one each time."""

    model: str
    n: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stops: tuple[str, ...]
    max_tokens: int | None
    stream: bool
    usage: bool  # at the end of a stream
    logprobs: bool
    top: int


def _wrong(name: str, expected: str, got: Any) -> ApiError:
    shown = repr(got)
    return ApiError(f"{name}: expected {expected}, got {shown[:80]}{'...' if len(shown) > 80 else ''}", param=name)


def _number(given: Mapping[str, Any], name: str, default: float, good: Callable[[float], bool], what: str) -> float:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not good(value):
        raise _wrong(name, what, value)
    return float(value)


def _whole(given: Mapping[str, Any], name: str, default: int | None, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(name, f"a whole number from {least} to {most}", value)
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return bool(value)


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) for s in stops):
        raise _wrong("stop", f"a string or at most {MOST_STOPS} of them", value)
    if any(len(stop) > 1000 for stop in stops):
        raise ApiError("stop: a stop string holds at most 1000 characters", param="stop")
    return tuple(stop for stop in stops if stop)


def check_fields(given: Mapping[str, Any], known: Sequence[str]) -> None:
    """ApiError for a field that would be ignored."""
    for name, value in given.items():
        if name in known or name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise ApiError(f"{name}: unrecognized request argument", param=name, code="unknown_parameter")
        if not any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in _NEUTRAL[name]):
            raise ApiError(f"{name}: is not supported here; leave it out", param=name, code="unsupported_parameter")


def asked(given: Mapping[str, Any], known: Sequence[str], *, top: int | None, logprobs: bool) -> Asked:
    """The shared part of a request."""
    check_fields(given, known)
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError("model: name one of /v1/models", param="model")
    options = given.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _wrong("stream_options", "an object", options)
    limit = "max_completion_tokens" if given.get("max_completion_tokens") is not None else "max_tokens"
    seed = given.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= 1 << 64):
        raise _wrong("seed", "a whole number of 64 bits", seed)
    return Asked(
        model=model,
        n=_whole(given, "n", 1, 1, MOST_N) or 1,
        temperature=_number(given, "temperature", 1.0, lambda t: 0 <= t <= 100, "a number from 0 (greedy) to 100"),
        top_p=_number(given, "top_p", 1.0, lambda p: 0 < p <= 1, "a number above 0 and at most 1"),
        top_k=_whole(given, "top_k", 0, 0, 1 << 30) or 0,
        seed=secrets.randbits(63) if seed is None else seed,
        stops=_stops(given),
        max_tokens=_whole(given, limit, None, 0, 1 << 30),
        stream=_flag(given, "stream"),
        usage=_flag(options, "include_usage"),
        logprobs=logprobs,
        top=top or 0,
    )


def completion_asked(given: Mapping[str, Any]) -> tuple[Asked, list[str | list[int]], bool]:
    """(what is asked, prompts as texts or token ids, echo) of a text completion."""
    top = _whole(given, "logprobs", None, 0, MOST_TOP)
    shared = asked(given, COMPLETION_FIELDS, top=top, logprobs=top is not None)
    return shared, _prompts(given.get("prompt")), _flag(given, "echo")


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)


def _prompts(value: Any) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    if isinstance(value, str) or (_ids(value) and value):
        return [value]
    if isinstance(value, list) and 0 < len(value) <= MOST_PROMPTS and all(isinstance(p, str) or _ids(p) for p in value):
        return value
    raise _wrong("prompt", f"a text, a list of token ids, or a list of 1 to {MOST_PROMPTS} of either", value)


def chat_asked(given: Mapping[str, Any]) -> tuple[Asked, list[dict[str, str]]]:
    """(what is asked, messages {role, content}) of a chat completion."""
    logprobs = _flag(given, "logprobs")
    top = _whole(given, "top_logprobs", 0, 0, MOST_TOP)
    if top and not logprobs:
        raise ApiError("top_logprobs: needs logprobs: true", param="top_logprobs")
    return asked(given, CHAT_FIELDS, top=top, logprobs=logprobs), _messages(given.get("messages"))


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "a list of {role, content}", value)
    out = []
    for place, message in enumerate(value):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise ApiError(f"{where}: role: expected one of {', '.join(_ROLES)}", param=where)
        out.append({"role": _ROLES[role], "content": _content(message.get("content"), where)})
    return out


def _content(value: Any, where: str) -> str:
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    ):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise ApiError(f"{where}: content: expected a text, or parts of type text", param=where)
    return value


# answers


@dataclass(frozen=True)
class TokenText:
    """A token as answers show it."""

    text: str
    logp: float | None
    top: Sequence[tuple[str, float]] = ()


def _bytes(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode("utf-8", "surrogatepass"))


def chat_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""

    def entry(text: str, logp: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": logp, "bytes": _bytes(text)}

    content = [entry(t.text, t.logp) | {"top_logprobs": [entry(*other) for other in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
    """`logprobs` of a text choice whose first token stands at `offset` characters."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logp for token in tokens],
        "top_logprobs": [None if token.logp is None else _top(token) for token in tokens],
        "text_offset": offsets,
    }


def _top(token: TokenText) -> dict[str, float]:
    """text -> log-likelihood: the likeliest of equal texts, and the token's own beside them, as OpenAI has it."""
    out: dict[str, float] = {}
    for text, logp in token.top:
        out.setdefault(text, logp)
    if token.logp is not None:
        out.setdefault(token.text, token.logp)
    return out


def usage(prompt: int, completion: int) -> dict[str, int]:
    """`usage` of an answer."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
