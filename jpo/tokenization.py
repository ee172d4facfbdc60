"""Text to token ids and back, over the `tokenizers` package, with the chat template that came with the model.

One text, one tokenization: a prompt's ids are what sampling continues, and a response's ids are those that follow them
in the joined text (Tokenizer.response_ids). Training, scoring, sampling and judging all ask here.

Knows special tokens and where they were declared; never templates of preference data (jpo.data).
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from jpo.disk import write_json, write_text
from jpo.errors import JpoError

_TAIL = 8  # tokens before a continuation that tell how its first one is spelled
_PREFIXED = {  # step of a tokenizer.json that puts a mark before a text -> the setting without the mark; None: no step
    "Prepend": None,
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


def _state(step: Any) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder as tokenizer.json holds it."""
    return None if step is None else json.loads(step.__getstate__())


def _step(name: str, state: dict[str, Any]) -> Any:
    """The normalizer or pre-tokenizer that tokenizer.json describes so."""
    module = {"normalizer": tokenizers.normalizers, "pre_tokenizer": tokenizers.pre_tokenizers}[name]
    step = module.Sequence([])
    step.__setstate__(json.dumps(state).encode())
    return step


def _unmarked(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step without what it puts before a text; None where nothing is left of it."""
    if state is None:
        return None
    for key in ("normalizers", "pretokenizers"):
        if key in state:
            inner = [plain for part in state[key] if (plain := _unmarked(part)) is not None]
            return {**state, key: inner}
    if state["type"] not in _PREFIXED:
        return state
    setting = _PREFIXED[state["type"]]
    return None if setting is None else state | setting


def _drops_first_space(state: dict[str, Any] | None) -> bool:
    """Whether a decoder treats the first token otherwise than the following ones."""
    if state is None or state["type"] == "ByteLevel":
        return False
    return any(map(_drops_first_space, state["decoders"])) if "decoders" in state else state["type"] in _FIRST_TOKEN


_FIRST_TOKEN = ("Strip", "Metaspace", "WordPiece")


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """What the tokenizers package raises over a text becomes JpoError: bare Exception (where its vocabulary lacks the
    unknown token) and panics, which pass by `except Exception`."""
    try:
        yield
    except BaseException as error:  # a panic is told apart by its name: the class is not exported
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise JpoError(f"tokenizer: the tokenizers package fails on this text: {str(error)[:300]}") from None


class Tokenizer:
    """A model's tokenizer.

    `encode` adds no special token. Special tokens written out in the text ("<|im_end|>") become their single ids, as
    in transformers. `adds_bos` says whether the model was trained with BOS in front of every text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: Mapping[str, str | None] | None = None,
        eos_token_ids: Iterable[int] = (),
        adds_bos: bool | None = None,
        chat_template: str | None = None,
        settings: Mapping[str, Any] | None = None,
        bounded: bool = False,
    ):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bounded = bounded  # every text is encoded in a process with limits of time and memory
        self._written: dict[int, str] = {}  # identity of a backend -> its tokenizer.json, for that process
        self.special = dict(special or {})  # bos_token, eos_token, unk_token, pad_token -> spelling or None
        self.settings = dict(settings or {})  # the tokenizer_config.json that it came with
        self.chat_template = chat_template
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        ids = [] if self.eos_token_id is None else [self.eos_token_id]
        self.eos_token_ids = list(dict.fromkeys([*ids, *eos_token_ids]))
        if self.eos_token_id is None and self.eos_token_ids:
            self.eos_token_id = self.eos_token_ids[0]
        self.adds_bos = self._processor_adds_bos() if adds_bos is None else adds_bos and self.bos_token_id is not None
        self._unmarked: tokenizers.Tokenizer | None = None  # the backend without a mark of a text's beginning

    def _special_id(self, name: str) -> int | None:
        token = self.special.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def _processor_adds_bos(self) -> bool:
        """Whether the post-processor puts BOS in front: asked by encoding, because it has many forms."""
        with _faults():
            ids = self.backend.encode("", add_special_tokens=True).ids
        return bool(ids) and self.bos_token_id is not None and ids[0] == self.bos_token_id

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows, added tokens included; the model's embedding may have more rows."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added. JpoError for anything but a str of valid Unicode."""
        return self._encoded(self.backend, text)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """What encode gives of each text, over the threads of the tokenizers package where no text is long."""
        from jpo.formats.bounded_tokens import LONG

        if self.bounded or any(len(text) > LONG for text in texts):
            return [self.encode(text) for text in texts]
        try:
            with _faults():
                found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # one of them is no valid Unicode: encode says which
            return [self.encode(text) for text in texts]
        return [entry.ids for entry in found]

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, which sampling continues: BOS where the model was trained with it, then the text's."""
        return self.with_bos(self.encode(prompt))

    def with_bos(self, ids: list[int]) -> list[int]:
        """Token ids of a text's beginning, behind BOS where the model was trained with it."""
        return [self.bos_token_id, *ids] if self.adds_bos and self.bos_token_id is not None else ids

    def response_ids(
        self,
        prompt: str,
        response: str,
        prompt_ids: Sequence[int] | None = None,
        joined_ids: Sequence[int] | None = None,
    ) -> tuple[list[int], bool]:
        """(ids of `response` behind `prompt`, whether a merge crosses the boundary between them); no EOS is added.

        The ids are the rest of the joined text's where that begins with the prompt's own. Otherwise, so that equal
        prompts stay equal, the response is encoded as a continuation: by itself, without the mark that SentencePiece
        tokenizers put before a text ("\u2581"). prompt_ids: what prompt_ids(prompt) gave,
        joined_ids: what encode(prompt + response) gave, where they are known.
        """
        before = self.prompt_ids(prompt) if prompt_ids is None else list(prompt_ids)
        if self.adds_bos:
            before = before[1:]
        whole = self.encode(prompt + response) if joined_ids is None else list(joined_ids)
        if whole[: len(before)] == before:
            return whole[len(before) :], False
        return self._encoded(self._without_mark(), response), True

    def _without_mark(self) -> tokenizers.Tokenizer:
        """A copy of the backend that puts nothing before a text; the backend itself where it puts nothing anyway."""
        if self._unmarked is None:
            self._unmarked = self.backend
            for name in ("normalizer", "pre_tokenizer"):
                state = _state(getattr(self.backend, name))
                plain = _unmarked(state)
                if plain != state:
                    if self._unmarked is self.backend:
                        self._unmarked = copy.deepcopy(self.backend)
                    setattr(self._unmarked, name, None if plain is None else _step(name, plain))
        return self._unmarked

    def _encoded(self, backend: tokenizers.Tokenizer, text: str) -> list[int]:
        from jpo.formats import bounded_tokens, long_texts

        if not isinstance(text, str):
            raise JpoError(f"text: expected a str, got {type(text).__name__}")
        try:
            if not self.bounded and len(text) <= bounded_tokens.LONG:
                with _faults():
                    return backend.encode(text, add_special_tokens=False).ids
            text.encode()  # UnicodeEncodeError
            if not self.bounded:
                with _faults():
                    ids = long_texts.encode(text, backend, self._without_mark)
                if ids is not None:
                    return ids
            if id(backend) not in self._written:
                self._written[id(backend)] = backend.to_str(pretty=False)
            return bounded_tokens.encode(self._written[id(backend)], [text])[0]
        except (TypeError, UnicodeEncodeError):  # the package's ways to say that a str is no valid Unicode
            place = next((index for index, letter in enumerate(text) if 0xD800 <= ord(letter) < 0xE000), None)
            if place is None:
                raise
            raise JpoError(f"text: character {place} is a lone surrogate, which UTF-8 cannot hold") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids (n,); bytes that are no UTF-8 become U+FFFD. Special tokens are spelled out by default."""
        size = self.vocab_size
        plain = [int(entry) for entry in ids]
        for entry in plain:
            if not 0 <= entry < 1 << 32:
                raise JpoError(f"ids: {entry} is no token id (vocabulary of {size})")
        with _faults():
            return self.backend.decode(plain, skip_special_tokens=skip_special_tokens)

    def decode_continuation(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """What token ids (n,) add to the text of `before`, so that both texts joined are the text of all ids.

        Decoders of SentencePiece tokenizers drop the space that a text begins with; a continuation keeps its own.
        """
        if not before or not _drops_first_space(_state(self.backend.decoder)):
            return self.decode(ids)
        tail = list(before[-_TAIL:])
        head, whole = self.decode(tail), self.decode([*tail, *ids])
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids)

    def token_to_id(self, token: str) -> int | None:
        """The id of one token as spelled in the vocabulary, or None."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The spelling of one token id in the vocabulary, or None."""
        return self.backend.id_to_token(int(token_id))

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """`messages` ({"role", "content"}, ...) through the model's chat template: text that holds its BOS."""
        from jpo.formats.chat import render

        if self.chat_template is None:
            raise JpoError("chat template: this tokenizer has none; use a text template instead (template kind 'text')")
        names = {name: token for name, token in self.special.items() if token is not None}
        return render(self.chat_template, messages, add_generation_prompt, names)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json and tokenizer_config.json (chat template inside), as transformers reads them."""
        folder = os.fspath(folder)
        os.makedirs(folder, exist_ok=True)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.settings,
        }
        settings.update({name: token for name, token in self.special.items() if token is not None})
        settings.pop("chat_template", None)
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        write_text(os.path.join(folder, "tokenizer.json"), self.backend.to_str(pretty=False))
        write_json(os.path.join(folder, "tokenizer_config.json"), settings)
