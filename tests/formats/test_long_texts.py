"""Long texts in slices: the ids of the whole text, Ctrl-C heard within 250 ms, and the worker where no slice fits."""

import random

import pytest

import jpo
from jpo.formats import bounded_tokens, long_texts
from tests.interrupted import assert_ends_within

PIECES = (
    " ", "  ", "\n", "\n\n", "\t", "a", "the", "Name a colour", "123", "1234567", "\u00e9", "e\u0301", "\u4e16\u754c",
    "\U0001f469\u200d\U0001f467", "'s", "...", "<|im_end|>", "</s>", "\u2581", "x" * 20, " " * 30, "\r\n", "\u00a0",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return jpo.load("tiny").tokenizer


def whole(tokenizer, text):
    return tokenizer.backend.encode(text, add_special_tokens=False).ids


def sliced(tokenizer, text):
    return long_texts.encode(text, tokenizer.backend, tokenizer._without_mark)


def random_text(rng, length):
    chosen = rng.sample(PIECES, rng.choice((2, 3, 8, len(PIECES))))
    text = ""
    while len(text) < length:
        text += rng.choice(chosen)
    return text


def test_slices_give_the_ids_of_the_whole_text(tokenizer, monkeypatch):
    for name, value in (("SLICE", 1000), ("OVERLAP", 300), ("EDGE", 100)):
        monkeypatch.setattr(long_texts, name, value)
    rng, met = random.Random(0), 0
    for _ in range(60):
        text = random_text(rng, rng.choice((999, 1001, 2500, 6000)))
        ids = sliced(tokenizer, text)
        assert ids in (None, whole(tokenizer, text)), text[:80]
        met += ids is not None
    assert met > 50


def test_what_slices_cannot_agree_on_is_left_to_the_worker(tokenizer, monkeypatch):
    """A backend that looks at the whole text: its slices disagree, and the ids are still those of the whole."""

    class Counting:
        def __init__(self, backend):
            self.backend, self.calls = backend, 0

        def encode(self, text, add_special_tokens):
            self.calls += 1
            return self.backend.encode(text[self.calls % 3 :], add_special_tokens=add_special_tokens)

    text = "Name a colour, or two. " * 10_000
    counting = Counting(tokenizer.backend)
    assert long_texts.encode(text, counting, lambda: counting) is None
    assert long_texts.encode("a" * 9 + " " * 200_000, tokenizer.backend, tokenizer._without_mark) in (
        None,
        whole(tokenizer, "a" * 9 + " " * 200_000),
    )
    monkeypatch.setattr(long_texts, "encode", lambda *_: None)
    short = text[: bounded_tokens.LONG + 1]
    assert tokenizer.encode(short) == whole(tokenizer, short)


def test_ctrl_c_while_twenty_megabytes_are_tokenized(tokenizer):
    """It took the worker's 2 GB and failed; what the package holds the lock for is now a slice."""
    text = "word and more, " * (20_000_000 // 15)
    assert_ends_within(0.25, lambda: tokenizer.encode(text), (0.1, 0.3, 0.5))


def test_a_long_text_beside_its_parts(tokenizer):
    text = " ".join(f"{number} times blue," for number in range(12_000))
    assert len(text) > bounded_tokens.LONG and tokenizer.encode(text) == whole(tokenizer, text)
    ids, crossed = tokenizer.response_ids("Count: ", text)
    assert not crossed and tokenizer.decode(ids) == text
