"""OpenAPI descriptions of both servers: paths and methods from their routes, words from the handlers' docstrings, and a
schema for each body here. Both servers give theirs at /openapi.json. Knows JSON schemas; never models or items.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from jpo import __version__
from jpo.web import openai_forms
from jpo.web.store import LIMITS, VERDICTS

Schema = dict[str, Any]
_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")


def _whole(least: int, most: int | None = None) -> Schema:
    return {"type": ["integer", "null"], "minimum": least, **({} if most is None else {"maximum": most})}


def _object(required: Sequence[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_SAMPLING: dict[str, Schema] = {
    "model": _TEXT,
    "stream": _FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": _FLAG}},
    "stop": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TEXT, "maxItems": openai_forms.MOST_STOPS}]},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 100},
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "top_k": _whole(0, 1 << 30),
    "max_tokens": _whole(0, 1 << 30),
    "seed": {"type": ["integer", "null"]},
    "n": _whole(1, openai_forms.MOST_N),
}  # fmt: skip
_MESSAGE = _object(
    ("role", "content"), role={"enum": ["system", "developer", "user", "assistant"]},
    content={"anyOf": [_TEXT, {"type": "array", "items": _object(("type", "text"), type={"const": "text"}, text=_TEXT)}]},
)  # fmt: skip
_ASKED = _object(("model", "instruction"), model=_TEXT, instruction=_TEXT)
BODIES: dict[str, Schema] = {
    "/v1/completions": _object(
        ("model", "prompt"), **_SAMPLING, echo=_FLAG, logprobs=_whole(0, openai_forms.MOST_TOP),
        prompt={"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}]},
    ),
    "/v1/chat/completions": _object(
        ("model", "messages"), **_SAMPLING, messages={"type": "array", "items": _MESSAGE, "minItems": 1},
        logprobs=_FLAG, top_logprobs=_whole(0, openai_forms.MOST_TOP), max_completion_tokens=_whole(0, 1 << 30),
    ),
    "/tokenize": _object(("prompt",), prompt=_TEXT, add_special_tokens=_FLAG),
    "/detokenize": _object(("tokens",), tokens={"type": "array", "items": {"type": "integer", "minimum": 0}}),
    "/compare": _object(
        ("left", "right"), left=_ASKED, right=_ASKED,
        **{name: _SAMPLING[name] for name in ("temperature", "top_p", "top_k", "seed", "max_tokens")},
    ),
    "/keep": _object(("comparison", "verdict"), comparison=_TEXT, verdict={"enum": ["left", "right", "undo"]}),
    "/verdict": _object(
        ("showing", "verdict"), showing={"type": "integer"}, verdict={"enum": list(VERDICTS)},
        seconds={"type": "number", "minimum": 0}, rationale={"type": "string", "maxLength": LIMITS["rationale"]},
        tags={"type": "array", "items": {"type": "string", "maxLength": LIMITS["tag"]}, "maxItems": LIMITS["tags"]},
    ),
    "/undo": _object(),
}  # fmt: skip
FORMS: dict[str, Schema] = {
    "/enter": _object(("name", "passcode"), name=_TEXT, passcode=_TEXT, key=_TEXT),
    "/leave": _object(("csrf",), csrf=_TEXT),
}
QUERIES = {"/": ("key",), "/overview": ("key",), "/interplay.svg": ("key",), "/feedback.jsonl": ("key", "format")}
_ERROR = _object(("error",), error=_object(("message", "type", "param", "code"), message=_TEXT, type=_TEXT))


def _operation(path: str, method: str, handler: Callable[..., Any]) -> Schema:
    words = " ".join((handler.__doc__ or "").split())
    names = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in _PARAMETER.findall(path)]
    names += [{"name": name, "in": "query", "schema": _TEXT} for name in QUERIES.get(path, ())]
    operation: Schema = {
        "summary": words.partition(": ")[2] or words,
        "parameters": names,
        "responses": {"default": {"description": "the answer, or a refusal that says what is wrong"}},
    }
    for kind, table in (("application/json", BODIES), ("application/x-www-form-urlencoded", FORMS)):
        if method == "POST" and path in table:
            operation["requestBody"] = {"required": True, "content": {kind: {"schema": table[path]}}}
    return operation


def describe(title: str, routes: Sequence[BaseRoute], prefix: str = "") -> Schema:
    """The OpenAPI 3.1 description of these routes, which are mounted at `prefix`."""
    paths: dict[str, Schema] = {}
    for route in routes:
        if isinstance(route, Route):
            methods = sorted((route.methods or set()) - {"HEAD"})
            operations = {method.lower(): _operation(route.path, method, route.endpoint) for method in methods}
            paths[_PARAMETER.sub(r"{\1}", route.path)] = operations
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def route(title: str, routes: Sequence[BaseRoute], prefix: str = "") -> Route:
    """GET /openapi.json over these routes."""

    @functools.cache
    def description() -> Mapping[str, Any]:
        return describe(title, [*routes, own], prefix)

    async def openapi(request: Request) -> Response:
        """GET /openapi.json: this description."""
        return JSONResponse(description())

    own = Route("/openapi.json", openapi)
    return own
