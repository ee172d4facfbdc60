"""Renders chat templates in a process of their own, bounded in time, memory and output.

A template is a program of unknown origin, and neither a thread nor a sandbox can be stopped while it multiplies
strings: a process can. It starts with the first template (some 0.1 s) and stays; a rendering then costs a round trip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jpo.errors import JpoError
from jpo.formats.worker import Worker

SECONDS = 10.0  # of processor time for one rendering
SOURCE_LIMIT = 1 << 20  # characters of a template
OUTPUT_LIMIT = 1 << 20  # characters of a rendering, beside four times its messages
_MESSAGES_LIMIT = 1 << 28  # bytes


class Ended(JpoError):
    """A rendering that passed a limit of time, or whose process ended: whether it would have gone well is not known."""


worker = Worker("chat template", "_chat_worker.py", ("jinja2", "markupsafe"))


def render(
    template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """The conversation as the template writes it.

    `variables` (bos_token, eos_token, ...) are visible to the template beside messages, add_generation_prompt, tools
    and documents (both none). JpoError where the template fails, refuses the conversation or passes a bound (Ended for
    time).
    """
    if len(template) > SOURCE_LIMIT:
        raise JpoError(f"chat template: {len(template)} characters are more than the {SOURCE_LIMIT} allowed")
    plain = [dict(message) if isinstance(message, Mapping) else message for message in messages]
    for index, message in enumerate(plain):
        if not isinstance(message, dict):
            raise JpoError(f"messages[{index}]: expected a mapping (role, content), got {type(message).__name__}")
    names = {"messages": plain, "add_generation_prompt": bool(add_generation_prompt), "tools": None, "documents": None}
    try:
        given = json.dumps({**variables, **names}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JpoError(f"messages: only what JSON holds can be given to a chat template: {error}") from None
    if len(given) > _MESSAGES_LIMIT:
        raise JpoError(f"messages: {len(given)} bytes are more than the {_MESSAGES_LIMIT} allowed")
    limit = OUTPUT_LIMIT + 4 * len(given)
    request = f'{{"template": {json.dumps(template)}, "limit": {limit}, "variables": {given}}}'.encode("ascii")
    with worker.lock:
        reply = worker.ask(request, 12 * limit + 4096, SECONDS)  # a character outside the BMP is 12 bytes of JSON
    if "text" not in reply:
        raise (Ended if reply.get("ended") else JpoError)(f"chat template: {reply.get('error')}")
    return reply["text"]
