"""Ollama's Modelfile: FROM, ADAPTER, TEMPLATE, SYSTEM and PARAMETER lines beside a GGUF file or a merged directory.

A chat template is Jinja, TEMPLATE is Go's text/template. What Jinja writes around the texts of a conversation is taken
from its own renderings; where that is not the same for every turn, no TEMPLATE is written (Ollama then goes by the GGUF
file's own).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jpo.data.templates import Template
from jpo.disk import write_text
from jpo.errors import JpoError, printable
from jpo.formats.chat import Ended
from jpo.formats.files import read_text
from jpo.tokenization import Tokenizer

MODELFILE = "Modelfile"
NO_TURNS = "the chat template has no form in Ollama's turns"
_MARK = "# Written by jpo"
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


@dataclass(frozen=True)
class Turns:
    """What stands around the texts of a conversation; every turn is opening, prompt, between, response, end."""

    opening: str
    between: str
    end: str = ""
    first: str = ""  # the opening of the first turn, without a system message
    system: tuple[str, str] | None = None  # around a system message, the first opening included; None: not possible

    @property
    def default(self) -> str:
        """The system message that stands where none is given."""
        if self.system is None or self.first == self.opening:
            return ""
        before, behind = self.system
        inside = self.first.startswith(before) and self.first.endswith(behind)
        return self.first[len(before) : len(self.first) - len(behind)] if inside else ""

    def text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation up to the point where the last response begins."""
        system = next((message["content"] for message in messages if message["role"] == "system"), None)
        rest = [message["content"] for message in messages if message["role"] != "system"]
        parts = [self.first if system is None or self.system is None else f"{self.system[0]}{system}{self.system[1]}"]
        for index, content in enumerate(rest):
            parts += [self.opening] if index and index % 2 == 0 else []
            parts += [content, self.end if index % 2 else self.between]
        return "".join(parts)

    def go(self) -> str | None:
        """TEMPLATE's text: with .System, .Prompt and .Response, which Ollama fills once a turn, where every turn opens
        alike; otherwise over .Messages. None where neither can say it."""
        if self.first == self.opening or self.default:
            opening = _literal(self.opening)
            if self.system is not None:
                opening = f"{{{{ if .System }}}}{_around(self.system)}{{{{ else }}}}{opening}{{{{ end }}}}"
            return f"{opening}{{{{ .Prompt }}}}{_literal(self.between)}{{{{ .Response }}}}{_literal(self.end)}"
        system = self.system or (self.first, self.first)
        if not self.first.endswith(self.opening) or not system[1].endswith(self.opening):
            return None
        head = _literal(self.first.removesuffix(self.opening))
        if self.system is not None:
            around = _around((system[0], system[1].removesuffix(self.opening)))
            head = f"{{{{ if .System }}}}{around}{{{{ else }}}}{head}{{{{ end }}}}"
        user = f"{_literal(self.opening)}{{{{ .Content }}}}{_literal(self.between)}"
        return (
            f'{head}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}'
            f"{{{{ .Content }}}}{_literal(self.end)}{{{{ end }}}}{{{{ end }}}}"
        )


def _around(system: tuple[str, str]) -> str:
    before, behind = map(_literal, system)
    return f"{before}{{{{ .System }}}}{behind}"


def _literal(text: str) -> str:
    """Text that Go's template copies: its own braces and the Modelfile's quotes written as strings."""
    return text.replace("{{", "\0").replace('"""', '{{ "\\"\\"\\"" }}').replace("\0", '{{ "{{" }}')


def _turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


_SYSTEM, _ONE, _REPLY, _TWO = "Sys-7f3a-tem", "Prompt-1d2b-one", "Reply-9c4e-one", "Prompt-5e6f-two"


def _split(text: str, *marks: str) -> list[str] | None:
    """What stands between the marks, which must each stand once and in order."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            return None
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], prompt: bool = True) -> str | None:
    """The conversation by the chat template; None where it refuses it. A BOS that the tokenizer adds is not spelled.
    chat.Ended where it is not known."""
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)
    except Ended:
        raise
    except JpoError:
        return None
    token = tokenizer.special.get("bos_token") if tokenizer.adds_bos else None
    return text.removeprefix(token) if token else text


def chat_turns(tokenizer: Tokenizer) -> Turns | None:
    """The chat template as turns, found by rendering; None where it has no such form; chat.Ended where it takes too
    long."""
    if tokenizer.chat_template is None:
        return None
    parts = _split(_rendered(tokenizer, _turns(_ONE, _REPLY, _TWO)) or "", _ONE, _REPLY, _TWO)
    if parts is None:
        return None
    first, between, joint, _ = parts  # joint: a response's end, then the next turn's opening
    with_system = _split(_rendered(tokenizer, _turns(_ONE, system=_SYSTEM)) or "", _SYSTEM, _ONE)
    system = (with_system[0], with_system[1]) if with_system else None
    ended = _split(_rendered(tokenizer, _turns(_ONE, _REPLY), prompt=False) or "", _ONE, _REPLY)
    shared = os.path.commonprefix([joint[::-1], (system[1] if system else first)[::-1]])
    cuts = [len(joint) - len(shared), len(ended[2]) if ended and joint.startswith(ended[2]) else len(joint)]
    for cut in cuts:
        found = Turns(joint[cut:], between, joint[:cut], first, system)
        if found.go() is not None and _is(found, tokenizer):
            return found
    return None


def _is(turns: Turns, tokenizer: Tokenizer) -> bool:
    """Whether the turns write what the chat template writes, for conversations of one to three turns."""
    talks = [_turns("Hi?"), _turns("Hi?", "Ho.", "And\nmore { }?"), _turns("a", "b", "c", "d", "e")]
    talks += [_turns("Hi?", "Ho.", "more", system="Be brief.")] if turns.system else []
    return all(turns.text(talk) == _rendered(tokenizer, talk) for talk in talks)


def text_turns(template: Template) -> Turns:
    """A text template as turns: nothing but the prompt's text stands around the texts."""
    opening, between = template.prompt.split("{instruction}")
    return Turns(opening, between, first=opening)


def turns_of(settings: Mapping[str, Any], tokenizer: Tokenizer) -> Turns | None:
    """What an adapter was trained with, by its jpo_config.json; the chat template where another program wrote it."""
    stored = settings.get("template")
    if stored is not None:
        template = Template.from_dict(stored)
        if template.kind == "text":
            return text_turns(template)
    return chat_turns(tokenizer)


def _quoted(text: str) -> str:
    return f'"""{text}"""'


def _parameters(tokenizer: Tokenizer, generation: Mapping[str, Any]) -> list[str]:
    ends = [tokenizer.id_to_token(number) for number in tokenizer.eos_token_ids]
    lines = [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends if end]
    for key, name in _SAMPLING.items():
        value = generation.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            lines.append(f"PARAMETER {name} {value}")
    return lines


def modelfile(
    base: str,
    adapter: str | None,
    turns: Turns | None,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any],
    without: str = NO_TURNS,
) -> str:
    """The Modelfile's text: base and adapter are paths as they stand in it; `without` says why there are no turns."""
    lines = [f"{_MARK}: ollama create NAME -f Modelfile", f"FROM {base}"]
    lines += [f"ADAPTER {adapter}"] if adapter else []
    template = turns.go() if turns is not None else None
    if turns is None or template is None:
        lines.append(f"# No TEMPLATE: {printable(without)}; the GGUF file holds its own")
    else:
        lines.append(f"TEMPLATE {_quoted(template)}")
        if turns.default:
            lines.append(f"SYSTEM {_quoted(turns.default)}")
    return "\n".join([*lines, *_parameters(tokenizer, generation)]) + "\n"


def is_own_modelfile(path: str) -> bool:
    """Whether jpo wrote the Modelfile at `path`."""
    return read_text(path).startswith(_MARK)


def write_modelfile(folder: str, text: str) -> bool:
    """Writes `folder`/Modelfile; False, and nothing is done, where one stands there that a person wrote."""
    path = os.path.join(folder, MODELFILE)
    if os.path.exists(path) and not is_own_modelfile(path):
        return False
    write_text(path, text)
    return True
