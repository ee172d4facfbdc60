"""The tokenizer as GGUF metadata: the inverse of jpo.formats.gguf_tokenizer, and checked by it.

Byte-level BPE becomes model "gpt2" with its merges and the name of its pattern; BPE over SentencePiece's pieces with
byte fallback becomes "llama" with scores. The result is read again and must cut probe texts as the tokenizer does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jpo.errors import JpoError
from jpo.export import container
from jpo.export.container import Entry
from jpo.formats.gguf_tokenizer import known_patterns, tokenizer_from_metadata
from jpo.tokenization import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_PROBES = (
    "Hello, world! It's 12345.67 degrees; we'LL see.", "  two spaces\n\n\tand a tab \r\n", "don't I'VE they're",
    "naïve café ÀÉÎ größer", "Привет, мир! 你好世界 こんにちは 안녕하세요", "🦙🦙 ✅ 🌫️", "a[i] >= {b + 10};",
    "CamelCaseWord snake_case UPPER", "3 33 333 3333 33333", " leading", "trailing ", "\n \n\n \n\n\n", "a", "",
    "e\u0301",
)  # fmt: skip


def _refuse(what: str) -> JpoError:
    return JpoError(f"the tokenizer cannot be said in a GGUF file: {what}; merge with --format hf")


def _pieces(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other."""
    inner = state.get("pretokenizers", state.get("normalizers"))
    return [step for part in inner for step in _pieces(part)] if inner is not None else [state]


def _pattern(whole: Mapping[str, Any]) -> str:
    """tokenizer.ggml.pre of a byte-level tokenizer."""
    steps = _pieces(whole["pre_tokenizer"] or {"type": "none"})
    digits = [step for step in steps if step["type"] == "Digits"]
    splits = [step for step in steps if step["type"] == "Split"]
    other = [step["type"] for step in steps if step["type"] not in ("Digits", "Split", "ByteLevel")]
    if other or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _refuse(f"pre-tokenizer {[step['type'] for step in steps]} is none of llama.cpp's")
    texts = tuple(step.get("pattern", {}).get("Regex", "") for step in splits)
    composed = [step["type"] for step in _pieces(whole["normalizer"])] == ["NFC"] if whole["normalizer"] else False
    ignore = bool(whole["model"].get("ignore_merges"))
    for name, (pattern, cut_digits, takes_whole, is_composed) in known_patterns().items():
        same = texts == ((pattern,) if pattern else ()) and bool(digits) == cut_digits
        if same and ignore == takes_whole and composed == is_composed:
            return name
    raise _refuse(f"its pattern {texts!r:.300} (digits apart: {bool(digits)}) is none that llama.cpp names")


def _token_types(tokenizer: Tokenizer, tokens: list[str], unknown: str | None, pieces: bool) -> list[int]:
    added = tokenizer.backend.get_added_tokens_decoder()
    types = []
    for index, token in enumerate(tokens):
        if index in added:
            special = added[index].special
            types.append(_UNKNOWN if pieces and token == unknown else _CONTROL if special else _USER_DEFINED)
        elif pieces and token == unknown:
            types.append(_UNKNOWN)
        elif pieces and _BYTE_PIECE.fullmatch(token):
            types.append(_BYTE)
        else:
            types.append(_UNUSED if tokenizer.id_to_token(index) is None else _NORMAL)
    return types


def _merge_pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in either of tokenizer.json's spellings."""
    split = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(left, right) for left, right in split]


def _scores(tokens: list[str], pairs: list[tuple[str, str]]) -> list[float]:
    """Scores in whose order SentencePiece merges: minus the place of the first merge that makes the token."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, 0 if len(token) == 1 else len(pairs))) for token in tokens]


def _byte_level(whole: Mapping[str, Any]) -> dict[str, Entry]:
    pairs = _merge_pairs(whole["model"])
    if any(" " in part for pair in pairs for part in pair):
        raise _refuse("a merge holds a space")
    return {
        "tokenizer.ggml.model": container.text("gpt2"),
        "tokenizer.ggml.pre": container.text(_pattern(whole)),
        "tokenizer.ggml.merges": container.texts([f"{left} {right}" for left, right in pairs]),
    }


def _sentencepiece(whole: Mapping[str, Any], tokens: list[str]) -> dict[str, Entry]:
    steps = _pieces(whole["normalizer"]) if whole["normalizer"] else []
    kinds = [step["type"] for step in steps]
    space = "Prepend" in kinds
    if whole["pre_tokenizer"] is not None:
        before = _pieces(whole["pre_tokenizer"])
        if [step["type"] for step in before] == ["Metaspace"] and not kinds:
            space = before[0].get("prepend_scheme", "always") != "never"
        elif any(step["type"] != "Split" or step.get("pattern") != {"String": " "} for step in before):
            raise _refuse(f"pre-tokenizer {[step['type'] for step in before]} beside byte fallback")
    return {
        "tokenizer.ggml.model": container.text("llama"),
        "tokenizer.ggml.pre": container.text("default"),
        "tokenizer.ggml.scores": container.f32s(_scores(tokens, _merge_pairs(whole["model"]))),
        "tokenizer.ggml.add_space_prefix": container.flag(space),
    }


def _special(tokenizer: Tokenizer) -> dict[str, Entry]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    entries: dict[str, Entry] = {}
    for name, key in names.items():
        token = tokenizer.special.get(key)
        number = None if token is None else tokenizer.token_to_id(token)
        if number is not None:
            entries[f"tokenizer.ggml.{name}_token_id"] = container.u32(number)
    others = [number for number in tokenizer.eos_token_ids if number != tokenizer.eos_token_id]
    if tokenizer.eos_token_id is not None:
        entries["tokenizer.ggml.eos_token_id"] = container.u32(tokenizer.eos_token_id)
    for name, number in zip(("eot", "eom"), others, strict=False):
        entries[f"tokenizer.ggml.{name}_token_id"] = container.u32(number)
    entries["tokenizer.ggml.add_bos_token"] = container.flag(tokenizer.adds_bos)
    return entries


def tokenizer_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Entry]:
    """`tokenizer.*` of a tokenizer whose model's embedding has `rows` rows.

    JpoError where llama.cpp has no such tokenizer, or where the metadata, read again, cut a probe text otherwise.
    """
    whole = json.loads(tokenizer.backend.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise _refuse(f"model {model['type']!r}; only BPE is implemented")
    size = max(tokenizer.backend.get_vocab(with_added_tokens=True).values()) + 1
    tokens = [tokenizer.id_to_token(index) or f"[PAD{index}]" for index in range(max(size, rows))]
    pieces = bool(model.get("byte_fallback"))
    kind = _sentencepiece(whole, tokens) if pieces else _byte_level(whole)
    unknown = model.get("unk_token") or tokenizer.special.get("unk_token")
    entries = {
        **kind,
        "tokenizer.ggml.tokens": container.texts(tokens),
        "tokenizer.ggml.token_type": container.i32s(_token_types(tokenizer, tokens, unknown, pieces)),
        **_special(tokenizer),
    }
    if tokenizer.chat_template is not None:
        entries["tokenizer.chat_template"] = container.text(tokenizer.chat_template)
    _check(tokenizer, entries, len(tokens))
    return entries


def _check(tokenizer: Tokenizer, entries: Mapping[str, Entry], rows: int) -> None:
    again = tokenizer_from_metadata("the GGUF file", container.decoded(entries), rows)
    written = [tokenizer.id_to_token(number) or "" for number in tokenizer.eos_token_ids]
    for probe in (*_PROBES, " ".join(_PROBES), *written):
        ours, theirs = tokenizer.prompt_ids(probe), again.prompt_ids(probe)
        if ours != theirs:
            raise _refuse(f"the text {probe!r:.60} has the ids {ours[:12]}, and would have {theirs[:12]}")
