"""What acquisition and judges have in common: a reply, a fault, and the one method that a judge has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Reply:
    """A judge's raw reply and the tokens that it cost; `wait`: seconds for which the server wants no further
    request."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    wait: float = 0.0


class JudgeFault(Exception):
    """An attempt that brought no reply; `wait`: seconds for which the server wants no further request, if it said
    so."""

    def __init__(self, problem: str, wait: float | None = None):
        super().__init__(problem)
        self.wait = wait


class Judge(Protocol):
    """What acquisition needs: a name, which stands as `annotator` in the records and in the journal's keys, and `ask`.

    A judge whose name does not say all that its verdicts depend on also has `key`, which then stands in the keys. One
    whose server refuses parts of a request has `refused`, a mapping that the journal keeps for it between runs."""

    name: str

    async def ask(self, prompt: str) -> Reply:
        """One attempt; JudgeFault where it brings no reply."""
