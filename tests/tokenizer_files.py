"""Small tokenizers of the kinds that models come with, trained here on the embedded pairs: for tests of
tokenization."""

import json

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jpo import tokenization
from jpo.data.readers import read_records
from jpo.formats.gguf_tokenizer import tokenizer_from_metadata

MARK = "\u2581"
SPECIAL = ["<unk>", "<s>", "</s>"]
KINDS = ("bytes", "prepend", "metaspace-first", "metaspace-always", "unigram", "gguf")


def corpus():
    return [value for record in read_records("example") for value in record.values() if isinstance(value, str)]


def _vocabulary(size):
    """(vocabulary, merges) of a BPE of marked words trained on the corpus, SentencePiece's 256 byte tokens in front."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(MARK)
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=SPECIAL, max_token_length=12)
    trained.train_from_iterator(corpus(), trainer)
    found = json.loads(trained.to_str())["model"]
    rest = [token for token in sorted(found["vocab"], key=found["vocab"].get) if token not in SPECIAL]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *rest]
    return {token: index for index, token in enumerate(tokens)}, [tuple(merge) for merge in found["merges"]]


def _sentencepiece(kind):
    """Llama-2's and Mistral's first tokenizers ("prepend": a normalizer), and their later form (Metaspace)."""
    spaces = normalizers.Replace(" ", MARK)
    vocabulary, merges = _vocabulary(600)
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if kind == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), spaces])
    else:
        scheme = kind.removeprefix("metaspace-")
        backend.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme=scheme, split=False)
    pieces = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(pieces)
    return backend


def _unigram():
    """T5's kind: the pieces of highest likelihood, a mark before every word."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Replace("\n", " ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(MARK)
    trainer = trainers.UnigramTrainer(vocab_size=400, show_progress=False, special_tokens=SPECIAL, unk_token="<unk>")
    backend.train_from_iterator(corpus(), trainer)
    backend.decoder = decoders.Metaspace(MARK)
    return backend


def _bytes():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.decoder = decoders.ByteLevel()
    return backend


def gguf_entries():
    """SentencePiece as a GGUF file holds it, by key without "tokenizer.ggml.": scores instead of merges."""
    vocabulary, merges = _vocabulary(600)
    ranks = {left + right: -float(rank) for rank, (left, right) in enumerate(merges)}
    return {
        "model": "llama",
        "tokens": list(vocabulary),
        "token_type": np.array([2, 3, 3, *[6] * 256, *[1] * (len(vocabulary) - 259)], np.int32),
        "scores": np.array([ranks.get(token, -1e4) for token in vocabulary], np.float32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def make_tokenizer(kind):
    """A tokenizer of KINDS as jpo's own; those of SentencePiece put BOS before a text, as Llama's and Mistral's do."""
    if kind == "gguf":
        entries = gguf_entries()
        named = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
        return tokenizer_from_metadata("test.gguf", named, len(entries["tokens"]))
    backend = {"bytes": _bytes, "unigram": _unigram}.get(kind, lambda: _sentencepiece(kind))()
    backend.add_special_tokens(SPECIAL)
    if kind not in ("bytes", "unigram"):
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return tokenization.Tokenizer(backend, special=names)
