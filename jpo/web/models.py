"""The models that a server offers: one base and adapters over it, each with the template that it was trained with.

Knows texts, templates and tokens; never HTTP.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jpo.batching import Batcher
from jpo.data.templates import Template
from jpo.errors import JpoError
from jpo.evaluate.sampling import weights_digest
from jpo.model import HeldAdapter
from jpo.streams import Scored
from jpo.train.config import PreferenceConfig
from jpo.web.openai_forms import ApiError, TokenText

_LETTERS = 64  # of a token at most, beyond which a text is refused before it is encoded


@dataclass(frozen=True)
class Variant:
    """One model of the list. fingerprint differs where its weights do; beta: the one that its adapter was trained
    with."""

    name: str
    template: Template
    adapter: HeldAdapter | None
    fingerprint: str
    beta: float


def named_adapters(given: Sequence[str], base: str) -> dict[str, str]:
    """name -> folder of each NAME=PATH; a PATH alone is named by its folder."""
    out: dict[str, str] = {}
    for text in given:
        name, _, path = text.rpartition("=") if "=" in text and not os.path.isdir(text) else ("", "", text)
        name = name or os.path.basename(os.path.normpath(path))
        if not path or name in (*out, base):
            raise JpoError(f"--adapter: expected NAME=PATH with a name of its own, got {text!r}")
        out[name] = path
    return out


class Models:
    """Loads the adapters into `lm` and begins to decode. options: those of Batcher. template: for every model, instead
    of its own."""

    def __init__(self, lm: Any, name: str, adapters: Mapping[str, str], *, template: str | None = None, **options: Any):
        self.lm = lm
        tokenizer = lm.tokenizer
        own = Template.named(template or ("chat" if tokenizer.chat_template else None), tokenizer)
        self.variants = {name: Variant(name, own, None, weights_digest(lm), PreferenceConfig().beta)}
        for other, path in adapters.items():
            self.variants[other] = self._loaded(other, path, own if template else None)
        self.names = list(self.variants)
        self.ends = frozenset(tokenizer.eos_token_ids)
        self.batcher = Batcher(lm, {v.name: v.adapter for v in self.variants.values()}, **options)
        self._text = functools.lru_cache(maxsize=1 << 16)(self._token_text)

    def _loaded(self, name: str, path: str, template: Template | None) -> Variant:
        stored = self.lm.load_adapter(path)
        chosen = template or (Template.from_dict(stored["template"]) if "template" in stored else Template())
        chosen.check(self.lm.tokenizer)
        training = stored.get("training") or {}
        beta = training.get("beta", PreferenceConfig().beta)
        fingerprint = weights_digest(self.lm)
        return Variant(name, chosen, self.lm.take_adapter(), fingerprint, float(beta))

    def named(self, name: str) -> Variant:
        """The model of that name; 404 where there is none."""
        if name not in self.variants:
            known = ", ".join(self.names)
            raise ApiError(f"the model {name!r} does not exist here; there are: {known}", status=404, param="model",
                           code="model_not_found")  # fmt: skip
        return self.variants[name]

    # texts to tokens

    def encode(self, text: str) -> list[int]:
        """A prompt's token ids, BOS where the model has it; ApiError where it cannot fit."""
        if len(text) > _LETTERS * self.batcher.longest:
            raise self._too_long(f"{len(text)} characters")
        return list(self.lm.tokenizer.prompt_ids(text))

    def prompt(self, given: str | list[int]) -> tuple[list[int], str]:
        """(token ids, text) of a prompt that is either."""
        if isinstance(given, str):
            return self.encode(given), given
        self.check_ids(given, "prompt")
        return given, self.lm.tokenizer.decode(given)

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        """ApiError for ids outside the vocabulary."""
        size = int(self.lm.config["vocab_size"])
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise ApiError(f"{name}: {wrong} is no token id of this model (0 to {size - 1})", param=name)

    def chat_prompt(self, variant: Variant, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation by the model's template, ready for the answer."""
        if sum(len(message["content"]) for message in messages) > _LETTERS * self.batcher.longest:
            raise self._too_long("the messages")
        if variant.template.kind == "text":
            if len(messages) != 1 or messages[0]["role"] != "user":
                raise ApiError(
                    f"messages: {variant.name} was trained with a text template, which takes one user message; start "
                    "jpo serve with --template chat for conversations",
                    param="messages",
                )
            return self.encode(variant.template.prompt_text(messages[0]["content"]))
        turns = tuple({"role": message["role"], "content": message["content"]} for message in messages)
        return self.encode(variant.template.prompt_text(turns, self.lm.tokenizer))

    def room(self, ids: Sequence[int], wanted: int) -> int:
        """Tokens that may follow the prompt; ApiError where it fills the model's context."""
        room = self.batcher.longest - len(ids)
        if room < min(wanted, 1):
            raise self._too_long(f"{len(ids)} tokens")
        return room

    def _too_long(self, what: str) -> ApiError:
        return ApiError(
            f"This model's maximum context length is {self.batcher.longest} tokens; the prompt has {what}. Shorten it.",
            code="context_length_exceeded",
        )

    # tokens to texts

    def _token_text(self, token: int) -> str:
        return str(self.lm.tokenizer.decode_continuation([token], [token]))

    def shown(self, token: Scored) -> TokenText:
        """A token as answers show it."""
        top = [(self._text(other), logp) for other, logp in token.top]
        return TokenText(self._text(token.token_id), token.logp, top)
