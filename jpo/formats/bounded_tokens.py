"""Tokenizers of unknown origin: which of them are taken as they are, and the bounds of the others.

A tokenizer.json is a program too: its normalizer may multiply a text, its regular expressions may backtrack without
end. What multiplies by more than a small factor is refused by arithmetic. Expressions other than the published ones run
in a process with limits of time and memory (worker.py), first on probe texts, then on every text; so do long texts that
cannot be cut into slices (long_texts.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jpo.errors import FormatError, JpoError
from jpo.formats.worker import Worker

LONG = 1 << 16  # characters of the longest text that is encoded at once in this process: some 0.1 s
MOST_GROWTH = 64  # characters that one may become at most
SECONDS, SECONDS_PER_MB = 10.0, 30.0  # of processor time for one request
_TEXT_LIMIT = 1 << 28  # characters
_PROBES = (" ", "a", "aa b", "0", "\n", "x+y", "\u2581", "\u00e9", "\u4e16", "'s", "A.", "\t ")
_CONTRACTIONS, _TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUBLISHED = frozenset(  # expressions of Llama 3, Qwen 2, GPT-2 and SentencePiece's conversions: linear in the text
    [
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
        for digits in (r"\p{N}{1,3}", r"\p{N}")
    ]
    + [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        " {2,}",
        r"\p{N}{1,3}",
        r"\p{N}",
        r"\s+",
    ]
)
# a step that needs a look, or letters of its name spelled as escapes
_TO_LOOK_AT = re.compile(
    r'"Regex"|"Replace"|\\u00[2-7]|"(?:continuing_subword_prefix|end_of_word_suffix)"\s*:\s*"[^"]{65}'
)

_LARGE = re.compile(r"[:,\[\s]\d{8,}\s*[,}\]]")  # whole numbers that may be ids beyond MOST_ID
MOST_ID = (1 << 24) - 1  # the package holds a place for every id up to the highest, when it writes a vocabulary

worker = Worker("tokenizer", "_tokenizer_worker.py", ("tokenizers",))
_loaded: tuple[int, int] | None = None  # (process, identity of the tokenizer's text) that the worker holds


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _steps(part)


def _growth(step: dict[str, Any]) -> float:
    """Characters that one may become in a Replace step."""
    pattern, content = step.get("pattern"), step.get("content")
    if not isinstance(pattern, dict) or not isinstance(content, str):
        return 1  # the package refuses it
    text = pattern.get("String")
    if isinstance(text, str) and text:
        return max(1.0, len(content) / len(text))
    return 1 + len(content)  # an expression, or an empty string, may match between any two characters


def _refuse_large_ids(path: str, model: Any, added: Any) -> None:
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    largest = max((entry for entry in ids if isinstance(entry, int)), default=0)
    if largest > MOST_ID:
        raise FormatError(f"{path}: token id {largest} is above {MOST_ID}, the highest that is read")


def needs_bounds(path: str, text: str) -> bool:
    """Whether the tokenizer.json may only run in the worker; FormatError where it multiplies texts."""
    if not _TO_LOOK_AT.search(text) and not _LARGE.search(text):
        return False
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return False  # the package refuses it too, with its own words
    if not isinstance(whole, dict):
        return False
    for key in ("normalizer", "decoder", "pre_tokenizer"):
        growth = 1.0
        for step in _steps(whole.get(key)):
            growth *= _growth(step) if step.get("type") == "Replace" else 1
        if growth > MOST_GROWTH:
            raise FormatError(
                f"{path}: the {key} makes up to {growth:.3g} characters of one, more than the {MOST_GROWTH} of any known "
                "model: a tokenizer like this exhausts memory"
            )
    model = whole.get("model")
    _refuse_large_ids(path, model, whole.get("added_tokens"))
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and isinstance(model.get(key), str) and len(model[key]) > MOST_GROWTH:
            raise FormatError(f"{path}: model.{key} has {len(model[key])} characters, more than {MOST_GROWTH}")
    rest = [whole.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")]
    found = {str(step["Regex"]) for step in _steps(rest) if "Regex" in step}
    if any("Regex" in step for step in _steps(whole.get("decoder"))):
        raise FormatError(f"{path}: a decoder with a regular expression is not implemented")
    return not found <= _PUBLISHED


def encode(tokenizer: str, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, encoded in the worker by the tokenizer.json whose text is given. JpoError at a bound."""
    global _loaded
    size = sum(map(len, texts))
    if size > _TEXT_LIMIT:
        raise JpoError(f"text: {size} characters are more than the {_TEXT_LIMIT} that are encoded at once")
    with worker.lock:
        held = (worker.start().pid, hash(tokenizer))
        given = None if held == _loaded else tokenizer
        request = json.dumps({"tokenizer": given, "texts": texts}).encode("ascii")
        _loaded = None
        reply = worker.ask(request, 64 * size + (1 << 16), SECONDS + SECONDS_PER_MB * size / 1e6)
        if "ids" in reply:
            _loaded = held
    if "ids" not in reply:
        raise JpoError(f"tokenizer: {reply.get('error')}")
    return reply["ids"]  # type: ignore[no-any-return]


def probe(path: str, tokenizer: str) -> None:
    """Loads the tokenizer in the worker and encodes repeated probes there; FormatError where a bound is met."""
    try:
        encode(tokenizer, [(part * 400)[:400] for part in _PROBES] + ["".join(_PROBES) * 20])
    except JpoError as error:
        raise FormatError(f"{path}: {error}") from None
