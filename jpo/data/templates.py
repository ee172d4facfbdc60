"""The prompt template: how an instruction and a response become the two texts that the model reads.

One stored parameter: training, sampling and evaluation all read it from the adapter's directory, so that they cannot
differ. Knows texts and conversations; never token ids or lengths (jpo.data.encoding).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jpo.data.texts import Messages, Text
from jpo.errors import DataError, JpoError

DEFAULT = "spaced"
_PAPER = "### Instructions: {instruction}\n\n### Response:"
TEXTS = {  # name -> one text; {response} follows directly where it is not named
    "spaced": f"{_PAPER} {{response}}",
    "paper": _PAPER,
    "tldr": _PAPER.replace(
        "{instruction}", "You are given a social media post, summarize it accordingly. \nPost: {instruction}"
    ),
    "raw": "{instruction}",
}
NAMES = (*TEXTS, "chat")


def _halves(text: Any, name: str, slot: str) -> tuple[str, str]:
    """What stands before and after the one `slot`; every other brace is an ordinary character."""
    if not isinstance(text, str):
        raise JpoError(f"template: {name}: expected a string, got {type(text).__name__}")
    return _cut(text, name, slot)


@functools.lru_cache(maxsize=64)  # a template is cut for each record
def _cut(text: str, name: str, slot: str) -> tuple[str, str]:
    if text.count(slot) != 1:
        raise JpoError(f"template: {name}: expected {slot} exactly once, got it {text.count(slot)} times in {text!r}")
    before, after = text.split(slot)
    return before, after


def _parts(text: str) -> tuple[str, str]:
    """(prompt, response) of a template's one text. Spaces before {response} belong to the response, as tokenizers have
    it; a response's own leading space takes the place of one."""
    _halves(text, "text", "{instruction}")
    if "{response}" not in text:
        text += "{response}"
    before, after = _halves(text, "text", "{response}")
    if "{instruction}" not in before:
        raise JpoError(f"template: text: expected {{instruction}} before {{response}}, got {text!r}")
    prompt = before.rstrip(" ")
    return prompt, f"{before[len(prompt) :]}{{response}}{after}"


@dataclass(frozen=True)
class Template:
    """Kind "text": `prompt` with {instruction}, `response` with {response}; kind "chat": the tokenizer's chat template.

    The default is "spaced". `chat_sha256` pins the chat template of kind "chat". What is stored are the texts and never
    a name, so that an adapter means the same for ever: one that was trained when "paper" put a space before the
    response says so.
    """

    prompt: str = _parts(TEXTS[DEFAULT])[0]
    response: str = _parts(TEXTS[DEFAULT])[1]
    kind: str = "text"
    chat_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("text", "chat"):
            raise JpoError(f"template: kind: expected 'text' or 'chat', got {self.kind!r}")
        _halves(self.prompt, "prompt", "{instruction}")
        _halves(self.response, "response", "{response}")
        if self.chat_sha256 is not None and not isinstance(self.chat_sha256, str):
            raise JpoError(f"template: chat_sha256: expected a string, got {type(self.chat_sha256).__name__}")

    @classmethod
    def named(cls, given: str | None, tokenizer: Any = None, conversational: bool = False) -> Template:
        """The template that an option names, or the text with {instruction} (and {response}) that it gives.

        "spaced" (the default): one space before the response. "paper": the authors' concatenation, without it; "tldr":
        theirs around a post; "raw" adds nothing; "chat" is the chat template of `tokenizer`, pinned. None: "chat" for
        conversational records where the tokenizer has a chat template, else the default.
        """
        if given is None:
            chat = conversational and tokenizer is not None and tokenizer.chat_template is not None
            given = "chat" if chat else DEFAULT
        if given == "chat":
            if tokenizer is None or tokenizer.chat_template is None:
                raise JpoError("template: 'chat' needs a tokenizer with a chat template, and this one has none")
            return cls(kind="chat", chat_sha256=_digest(tokenizer))
        if given not in TEXTS and "{instruction}" not in given:
            raise JpoError(
                f"template: expected one of {', '.join(NAMES)}, or a text that holds {{instruction}}; got {given!r}"
            )
        return cls(*_parts(TEXTS.get(given, given)))

    @property
    def name(self) -> str:
        """What it is called; the text itself where it has no name."""
        if self.kind == "chat":
            return "chat"
        text = f"{self.prompt}{self.response}"
        return next((name for name, known in TEXTS.items() if _parts(known) == (self.prompt, self.response)), text)

    def to_dict(self) -> dict[str, Any]:
        """As it is stored with an adapter."""
        if self.kind == "chat":
            return {"kind": "chat", "chat_sha256": self.chat_sha256}
        return {"kind": "text", "prompt": self.prompt, "response": self.response}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Template:
        """What `to_dict` wrote; JpoError for unknown keys and wrong types."""
        if not isinstance(stored, Mapping):
            raise JpoError(f"template: expected an object, got {type(stored).__name__}")
        unknown = sorted(set(stored) - {"kind", "prompt", "response", "chat_sha256"})
        if unknown:
            raise JpoError(f"template: unknown key {unknown[0]!r}; expected kind, prompt, response, chat_sha256")
        return cls(**stored)

    def check(self, tokenizer: Any) -> None:
        """JpoError unless `tokenizer` can fill this template in as it was when the template was stored."""
        if self.kind != "chat":
            return
        if tokenizer.chat_template is None:
            raise JpoError("template: kind 'chat' needs a tokenizer with a chat template, and this one has none")
        if self.chat_sha256 is not None and self.chat_sha256 != _digest(tokenizer):
            raise JpoError(
                "template: the tokenizer's chat template is not the one that was stored; use the model trained from"
            )

    def prompt_text(self, instruction: Text, tokenizer: Any = None) -> str:
        """The text before the response. A BOS that the tokenizer will add is not spelled out."""
        if self.kind == "chat":
            return _without_bos(tokenizer.apply_chat_template(_turns(instruction, "user")), tokenizer)
        before, after = _halves(self.prompt, "prompt", "{instruction}")
        return f"{before}{_plain(instruction)}{after}"

    def response_text(self, instruction: Text, response: Text, tokenizer: Any = None) -> tuple[str, int | None]:
        """The text after the prompt, and the id that ends it (None: the tokenizer's EOS).

        The template's leading space is not doubled where the response brings one.
        """
        if self.kind == "chat":
            return self._chat_response(instruction, response, tokenizer)
        before, after = _halves(self.response, "response", "{response}")
        text = _plain(response)
        if before.endswith(" ") and text.startswith(" "):
            before = before[:-1]
        return f"{before}{text}{after}", None

    def _chat_response(self, instruction: Text, response: Text, tokenizer: Any) -> tuple[str, int | None]:
        prompt = self.prompt_text(instruction, tokenizer)
        turns = [*_turns(instruction, "user"), *_turns(response, "assistant")]
        whole = _without_bos(tokenizer.apply_chat_template(turns, add_generation_prompt=False), tokenizer)
        if not whole.startswith(prompt):
            raise JpoError(
                "template: this chat template writes a prompt differently once the answer follows; use a text template"
            )
        text = whole[len(prompt) :]
        for token_id in tokenizer.eos_token_ids:
            token = tokenizer.id_to_token(token_id)
            if token and text.rstrip().endswith(token):
                return text.rstrip()[: -len(token)], token_id
        return text, None


def _digest(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def _without_bos(text: str, tokenizer: Any) -> str:
    token = tokenizer.id_to_token(tokenizer.bos_token_id) if tokenizer.adds_bos else None
    return text.removeprefix(token) if token else text


def _turns(text: Text, role: str) -> Messages:
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def _plain(text: Text) -> str:
    if not isinstance(text, str):
        roles = ", ".join(turn["role"] for turn in text)
        raise DataError(f"a conversation ({roles}) does not fit a text template; use the template 'chat'")
    return text
