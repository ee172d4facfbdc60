"""What a batcher (jpo.batching) is asked for, and the events that it answers with.

Knows token ids, texts and model names; never how tokens come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jpo.errors import JpoError

Alternatives = Sequence[tuple[int, float]]  # (token id, log-likelihood), likeliest first


class Full(JpoError):
    """The queue is full; `after`: seconds after which it may be worth to ask again."""

    def __init__(self, after: int):
        super().__init__(f"the server is at work on as many requests as it takes; try again in {after} s")
        self.after = after


@dataclass(frozen=True)
class Request:
    """n continuations of one prompt by one of the models; temperature 0 is greedy.

    top: alternatives of each token that are asked for; score_prompt: the prompt's tokens are scored as well; witnesses:
    further models that score every token (and the prompt, where it is scored) without a say in it.
    """

    model: str
    prompt: Sequence[int]
    max_new_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stops: Sequence[str] = ()
    ends: frozenset[int] = frozenset()
    top: int = 0
    score_prompt: bool = False
    witnesses: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """All that read its tokens."""
        return (self.model, *self.witnesses)


@dataclass(frozen=True)
class Scored:
    """One token and its log-likelihood under the model (temperature 1, no cut); None for a text's first one."""

    token_id: int
    logp: float | None
    top: Alternatives = ()
    witnesses: tuple[float, ...] = ()


@dataclass(frozen=True)
class PromptRead:
    """The prompt was read; its tokens where they were to be scored."""

    tokens: Sequence[Scored] = ()


@dataclass(frozen=True)
class Drawn:
    """The next token of a sample, and the text that is certain by it. finish: "", "stop" or "length"."""

    sample: int
    token: Scored | None
    text: str
    finish: str = ""


@dataclass(frozen=True)
class Failed:
    """The request ends here."""

    message: str


Event = PromptRead | Drawn | Failed
