"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` package.

Three kinds: "gpt2" (byte-level BPE with merges, cut beforehand by the patterns that `tokenizer.ggml.pre` names),
"llama" (SentencePiece BPE with scores and byte fallback) and "gemma4" (the same with merges). Ids are those of the
model's own tokenizer.json. Outside test: the vocabularies in llama.cpp's models/,
tests/parity/test_gguf_vocabularies.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jpo import tokenization
from jpo.errors import FormatError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type; 1 normal, 5 unused, 6 byte

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(suffix: str, digits: str) -> str:
    """Words cut where lower case turns to upper: Tekken's pattern and, with contractions behind words, GPT-4o's."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{suffix}"
    return rf"{word}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"


class _Pre(NamedTuple):
    """How text is cut before merges: by a pattern of its own, else as GPT-2 does, after `digits` one by one."""

    pattern: str = ""
    digits: bool = False
    bos: bool = False  # BOS added where the file does not say
    whole: bool = False  # pieces that stand in the vocabulary as a whole need no merges (ignore_merges)
    composed: bool = False  # Unicode's NFC beforehand


_BYTES, _DIGITS = _Pre(), _Pre(digits=True)
_PRE: dict[str, _Pre] = {  # tokenizer.ggml.pre
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "granite-docling"), _BYTES),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _Pre(_LLAMA3, bos=True, whole=True)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _Pre(_LLAMA3, whole=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _Pre(_QWEN2, composed=True)),
    **dict.fromkeys(("stablelm2", "hunyuan"), _Pre(_QWEN2)),
    "tekken": _Pre(_cased("", r"\p{N}"), bos=True, whole=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _Pre(_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"))),
}


def known_patterns() -> dict[str, tuple[str, bool, bool, bool]]:
    """tokenizer.ggml.pre -> (pattern or "" for GPT-2's, digits one by one, whole pieces need no merges, NFC), one name
    for each way: for who writes the metadata."""
    usual = {"gpt-2", "smollm", "llama-bpe", "qwen2", "stablelm2", "tekken", "gpt-4o", "dbrx"}
    return {
        name: (rule.pattern, rule.digits, rule.whole, rule.composed) for name, rule in _PRE.items() if name in usual
    }


class _Metadata:
    """The `tokenizer.ggml.*` entries with their types checked."""

    def __init__(self, where: str, entries: dict[str, Any]):
        self.where, self.entries = where, entries

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.entries.get(f"tokenizer.ggml.{key}", default)
        if value is not None and not (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            raise self.fail(key, f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    def fail(self, key: str, what: str) -> FormatError:
        return FormatError(f"{self.where}: metadata key tokenizer.ggml.{key}: {what}")

    def texts(self, key: str) -> list[str]:
        value = self.get(key, list)
        if value is None:
            raise self.fail(key, "is missing")
        return value

    def numbers(self, key: str, count: int) -> np.ndarray | None:
        value = self.get(key, np.ndarray)
        if value is not None and len(value) != count:
            raise self.fail(key, f"expected one entry a token ({count}), got {len(value)}")
        return value

    def token(self, key: str, tokens: list[str]) -> str | None:
        """The spelling of the token whose id `key` holds."""
        index = self.get(key, int)
        if index is None or index == 0xFFFFFFFF:  # "none" as old converters wrote it
            return None
        if not 0 <= index < len(tokens):
            raise self.fail(key, f"id {index} lies outside the vocabulary of {len(tokens)}")
        return tokens[index]


def _merges(metadata: _Metadata, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    result = []
    for index, merge in enumerate(metadata.texts("merges")):
        left, space, right = merge.partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise metadata.fail("merges", f"entry {index} ({merge!r}) joins no two tokens to a third of the vocabulary")
        result.append((left, right))
    return result


def _byte_level(metadata: _Metadata, vocabulary: dict[str, int], pre: str) -> Tokenizer:
    if pre not in _PRE:
        raise metadata.fail(
            "pre", f"pre-tokenizer {pre!r} is not implemented; implemented are {', '.join(sorted(_PRE))}"
        )
    rule = _PRE[pre]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(metadata, vocabulary), ignore_merges=rule.whole))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rule.digits else []
    if rule.pattern:
        steps = [pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated")]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not rule.pattern)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    if rule.composed:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _splits(tokens: list[str], scores: np.ndarray, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores imply: best score first, every way to cut a token into two tokens.

    Among equal scores longer parts come first, as in transformers.
    """
    lefts, rights, owners = [], [], []
    for index, token in enumerate(tokens):  # the inner loop of loading a vocabulary of 262,144 words
        for cut in range(1, min(len(token), 256)):
            left = token[:cut]
            if left in vocabulary:
                right = token[cut:]
                if right in vocabulary:
                    lefts.append(left)
                    rights.append(right)
                    owners.append(index)
    lengths = [-np.fromiter(map(len, side), np.int64, len(side)) for side in (rights, lefts)]
    order = np.lexsort((*lengths, -scores[np.array(owners, np.int64)].astype(np.float64)))
    return [(lefts[index], rights[index]) for index in order.tolist()]


def _sentencepiece(metadata: _Metadata, tokens: list[str], vocabulary: dict[str, int], prefix: bool) -> Tokenizer:
    """`prefix`: whether a space is put in front where the file does not say."""
    scores = metadata.numbers("scores", len(tokens))
    if "tokenizer.ggml.merges" in metadata.entries:
        merges = _merges(metadata, vocabulary)
    elif scores is None:
        raise metadata.fail("scores", "is missing, and so is merges: one of the two orders the vocabulary")
    elif not np.isfinite(scores).all():
        raise metadata.fail("scores", "expected finite numbers")
    else:
        merges = _splits(tokens, scores, vocabulary)
    unknown = metadata.token("unknown_token_id", tokens) or ("<unk>" if "<unk>" in vocabulary else None)
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = metadata.get("add_space_prefix", bool, prefix)
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    pieces = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*pieces, decoders.Strip(" ", 1, 0)] if prefix else pieces)
    return backend


def _add_special(metadata: _Metadata, backend: Tokenizer, tokens: list[str], spm: bool) -> None:
    types = metadata.numbers("token_type", len(tokens))
    if types is None:
        return
    special = np.flatnonzero((types == _CONTROL) | ((types == _UNKNOWN) & spm))
    backend.add_special_tokens([AddedToken(tokens[index], normalized=False, special=True) for index in special])
    own = np.flatnonzero(types == _USER_DEFINED)
    backend.add_tokens([AddedToken(tokens[index], normalized=False, special=False) for index in own])


def _post_processor(metadata: _Metadata, tokens: list[str], default: bool, bos: str | None) -> Any:
    """BOS in front where the file says so: kept in tokenizer.json, so that other readers see it too."""
    if not metadata.get("add_bos_token", bool, default) or bos is None:
        return None
    return processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, tokens.index(bos))]
    )


def _build(metadata: _Metadata, tokens: list[str], vocabulary: dict[str, int]) -> tuple[Tokenizer, bool]:
    """(tokenizer without special tokens, whether BOS is added where the file does not say)"""
    kind = metadata.get("model", str)
    if kind == "gpt2":
        pre = metadata.get("pre", str) or "default"
        backend = _byte_level(metadata, vocabulary, pre)
        return backend, _PRE[pre].bos
    if kind in ("llama", "gemma4"):
        return _sentencepiece(metadata, tokens, vocabulary, kind == "llama"), True
    raise metadata.fail("model", f"tokenizer {kind!r} is not implemented; implemented are 'gpt2', 'llama' and 'gemma4'")


def tokenizer_from_metadata(where: str, entries: dict[str, Any], vocab_size: int) -> tokenization.Tokenizer:
    """The tokenizer that GGUF metadata describe; FormatError names `where` and the key.

    `vocab_size`: rows of the embedding, of which the vocabulary may leave the last ones unused.
    """
    metadata = _Metadata(where, entries)
    tokens = metadata.texts("tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or "" in vocabulary:
        index = next(i for i, token in enumerate(tokens) if not token or vocabulary[token] != i)
        raise metadata.fail("tokens", f"entry {index} ({tokens[index]!r}) is empty or stands twice")
    if len(tokens) > vocab_size:
        raise metadata.fail("tokens", f"{len(tokens)} tokens are more than the embedding's {vocab_size} rows")
    backend, default_bos = _build(metadata, tokens, vocabulary)
    _add_special(metadata, backend, tokens, metadata.get("model", str) != "gpt2")
    names = {
        "bos_token": metadata.token("bos_token_id", tokens),
        "eos_token": metadata.token("eos_token_id", tokens),
        "unk_token": metadata.token("unknown_token_id", tokens),
        "pad_token": metadata.token("padding_token_id", tokens),
    }
    processor = _post_processor(metadata, tokens, default_bos, names["bos_token"])
    if processor is not None:
        backend.post_processor = processor
    ends = [metadata.token(f"{key}_token_id", tokens) for key in ("eos", "eot", "eom")]
    template = entries.get("tokenizer.chat_template")
    return tokenization.Tokenizer(
        backend,
        special=names,
        eos_token_ids=[vocabulary[end] for end in ends if end is not None],
        chat_template=template if isinstance(template, str) else None,
    )
