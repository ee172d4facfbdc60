"""Text to token ids and back, over the `tokenizers` package, with the chat template that came with the model.

Knows special tokens and where they were declared; never templates of preference data (jpo.data).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from jpo.errors import JpoError


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
    ):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
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

    def _special_id(self, name: str) -> int | None:
        token = self.special.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def _processor_adds_bos(self) -> bool:
        """Whether the post-processor puts BOS in front: asked by encoding, because it has many forms."""
        ids = self.backend.encode("", add_special_tokens=True).ids
        return bool(ids) and self.bos_token_id is not None and ids[0] == self.bos_token_id

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows, added tokens included; the model's embedding may have more rows."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added. JpoError for anything but a str of valid Unicode."""
        if not isinstance(text, str):
            raise JpoError(f"text: expected a str, got {type(text).__name__}")
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
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
        return self.backend.decode(plain, skip_special_tokens=skip_special_tokens)

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
        from jpo.formats.files import write_json, write_text

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
