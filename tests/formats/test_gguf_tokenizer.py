"""Tokenizers inside GGUF files: pieces, special tokens, BOS and the two kinds of vocabulary."""

import numpy as np
import pytest
from model_files import ARRAY, BOOL, F32, I32, SHAPE, STRING, U32, byte_vocabulary, llama_metadata, write_gguf

from jpo.errors import FormatError, JpoError
from jpo.formats import load_checkpoint


def tokenizer(path, **changes):
    write_gguf(path, metadata=llama_metadata(**changes))
    return load_checkpoint(path).tokenizer


def pieces(path, text, **changes):
    made = tokenizer(path, **changes)
    return [made.id_to_token(index) for index in made.encode(text)]


def test_digits_stand_alone_for_smollm(tmp_path):
    path = tmp_path / "m.gguf"
    assert pieces(path, "x12") == ["x", "1", "2"]
    assert pieces(path, "x12", tokenizer__ggml__pre=(STRING, "gpt-2")) == ["x", "12"]
    assert pieces(path, "x12", tokenizer__ggml__pre=None) == ["x", "12"]
    # the spaces before a digit are a piece of their own for smollm; GPT-2 gives the last one to the number
    assert pieces(path, "  1") == ["\u0120\u0120", "1"]
    assert pieces(path, "  1", tokenizer__ggml__pre=(STRING, "gpt-2")) == ["\u0120", "\u0120", "1"]


def test_llama3_takes_whole_pieces_of_the_vocabulary(tmp_path):
    tokens, types, _ = byte_vocabulary()
    tokens[-1], types[-1] = "\u0120xyz", 1  # no merge leads to it
    changes = {
        "tokenizer__ggml__tokens": ((ARRAY, STRING), tokens),
        "tokenizer__ggml__token_type": ((ARRAY, I32), types),
        "tokenizer__ggml__pre": (STRING, "llama-bpe"),
    }
    assert pieces(tmp_path / "m.gguf", " xyz", **changes) == ["\u0120xyz"]
    assert tokenizer(tmp_path / "m.gguf", **changes).adds_bos


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("tekken", ["Mixed", "Case", " HELlo", "'s", " ", "1", "2", "3", "4", " (", "x", ");\n\n", " end"]),
        ("gpt-4o", ["Mixed", "Case", " HELlo's", " ", "123", "4", " (", "x", ");\n\n", " end"]),
        ("llama-bpe", ["MixedCase", " HELlo", "'s", " ", "123", "4", " (", "x", ");\n\n", " end"]),
        ("qwen2", ["MixedCase", " HELlo", "'s", " ", "1", "2", "3", "4", " (", "x", ");\n\n", " end"]),
        ("command-r", ["MixedCase", " HELlo", "'s", " ", "1", "2", "3", "4", " (", "x", ");", "\n\n", " end"]),
        ("mpt", ["MixedCase", " HELlo", "'s", " 1234", " (", "x", ");", "\n\n", " end"]),
    ],
)
def test_cuts_before_merges(tmp_path, pre, expected):
    made = tokenizer(tmp_path / "m.gguf", tokenizer__ggml__pre=(STRING, pre))
    text = "MixedCase HELlo's 1234 (x);\n\n end"
    places = [place for _, place in made.backend.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[first:last] for first, last in places] == expected


def test_composition_is_qwens_alone(tmp_path):
    ids = {
        pre: tokenizer(tmp_path / "m.gguf", tokenizer__ggml__pre=(STRING, pre)).encode("e\u0301")
        for pre in ("qwen2", "stablelm2")
    }
    assert len(ids["qwen2"]) == 2 and len(ids["stablelm2"]) == 3  # bytes of U+00E9; of e and U+0301


@pytest.mark.parametrize(("pre", "added"), [("tekken", True), ("llama-bpe", True), ("dbrx", False), ("qwen2", False)])
def test_bos_where_the_file_does_not_say(tmp_path, pre, added):
    assert tokenizer(tmp_path / "m.gguf", tokenizer__ggml__pre=(STRING, pre)).adds_bos is added


def test_special_tokens_in_text_are_parsed_as_transformers_does(tmp_path):
    made = tokenizer(tmp_path / "m.gguf")
    assert made.encode("h<|end|><think>") == [made.token_to_id("h"), 0, 2]
    ids = made.encode("he<|end|><think>")
    assert made.decode(ids) == "he<|end|><think>"
    assert made.decode(ids, skip_special_tokens=True) == "he<think>"  # user-defined, not control


def test_ends_of_a_turn_join_the_ends_of_text(tmp_path):
    made = tokenizer(tmp_path / "m.gguf", tokenizer__ggml__eot_token_id=(U32, 2))
    assert made.eos_token_id == 0 and made.eos_token_ids == [0, 2]
    assert load_checkpoint(tmp_path / "m.gguf").config["eos_token_ids"] == [0, 2]


@pytest.mark.parametrize(("said", "expected"), [(None, False), (True, True), (False, False)])
def test_bos(tmp_path, said, expected):
    change = {} if said is None else {"tokenizer__ggml__add_bos_token": (BOOL, said)}
    made = tokenizer(tmp_path / "m.gguf", **change)
    assert made.adds_bos is expected
    assert made.encode("h") == [made.token_to_id("h")]  # never added by encode itself


SPM = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581",
    "h",
    "i",
    "hi",
    "\u2581hi",
    "\u2581h",
]


def sentencepiece(**changes):
    tokens = [*SPM, *(f"[PAD{i}]" for i in range(len(SPM), SHAPE["vocab"]))]
    types = [2, 3, 3] + [6] * 256 + [1] * 6 + [5] * (SHAPE["vocab"] - len(SPM))
    scores = [0.0] * 259 + [-10.0, -11.0, -12.0, -2.0, -1.0, -3.0] + [-100.0] * (SHAPE["vocab"] - len(SPM))
    return {
        "tokenizer__ggml__model": (STRING, "llama"),
        "tokenizer__ggml__pre": None,
        "tokenizer__ggml__merges": None,
        "tokenizer__ggml__tokens": ((ARRAY, STRING), tokens),
        "tokenizer__ggml__token_type": ((ARRAY, I32), types),
        "tokenizer__ggml__scores": ((ARRAY, F32), scores),
        "tokenizer__ggml__eos_token_id": (U32, 2),
        **changes,
    }


def test_sentencepiece(tmp_path):
    path = tmp_path / "m.gguf"
    made = tokenizer(path, **sentencepiece())
    assert made.adds_bos and (made.bos_token_id, made.eos_token_id) == (1, 2)
    assert pieces(path, "hi hi", **sentencepiece()) == ["\u2581hi", "\u2581hi"]
    assert pieces(path, "\u00e9", **sentencepiece()) == ["\u2581", "<0xC3>", "<0xA9>"]
    assert pieces(path, "</s>", **sentencepiece()) == ["</s>"]
    for text in ("hi hi", "é日本🤗", "  hi\n\thi "):
        assert made.decode(made.encode(text)) == text
    plain = sentencepiece(tokenizer__ggml__add_space_prefix=(BOOL, False))
    assert pieces(path, "hi", **plain) == ["hi"]


def test_gemma_orders_by_merges_and_adds_no_space(tmp_path):
    path = tmp_path / "m.gguf"
    merges = {"tokenizer__ggml__merges": ((ARRAY, STRING), ["h i", "\u2581 hi"])}
    for change in (
        {"tokenizer__ggml__model": (STRING, "gemma4")},
        {"tokenizer__ggml__add_space_prefix": (BOOL, False)},
    ):
        made = sentencepiece(**{**merges, **change})
        assert pieces(path, "hi hi\u00e9", **made) == ["hi", "\u2581hi", "<0xC3>", "<0xA9>"]
        assert tokenizer(path, **made).adds_bos
        for text in ("hi hi", " hi", "  hi\n\nhi "):
            assert tokenizer(path, **made).decode(tokenizer(path, **made).encode(text)) == text


def test_best_score_wins(tmp_path):
    scores = sentencepiece()["tokenizer__ggml__scores"][1].copy()
    scores[262], scores[264] = -3.0, -2.0  # "▁h" now joins before "hi"; both still lead to "▁hi"
    scores[263] = -50.0
    change = sentencepiece(tokenizer__ggml__scores=((ARRAY, F32), scores))
    assert pieces(tmp_path / "m.gguf", "hii", **change) == ["\u2581hi", "i"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer__ggml__merges": ((ARRAY, STRING), ["h"])}, "merges: entry 0"),
        ({"tokenizer__ggml__merges": ((ARRAY, STRING), ["h e", "e h"])}, "merges: entry 1"),
        ({"tokenizer__ggml__merges": None}, "merges: is missing"),
        ({"tokenizer__ggml__tokens": None}, "tokens: is missing"),
        ({"tokenizer__ggml__tokens": ((ARRAY, U32), [1, 2])}, "tokens: expected list"),
        ({"tokenizer__ggml__tokens": ((ARRAY, STRING), ["a", "b", "a"])}, "tokens: entry 0"),
        (
            {"tokenizer__ggml__tokens": ((ARRAY, STRING), [f"t{i}" for i in range(273)])},
            "more than the embedding's 272",
        ),
        ({"tokenizer__ggml__token_type": ((ARRAY, I32), [1, 2])}, "token_type: expected one entry a token"),
        ({"tokenizer__ggml__eos_token_id": (U32, 272)}, "eos_token_id"),
        ({"tokenizer__ggml__bos_token_id": (F32, 1.0)}, "bos_token_id"),
        ({"tokenizer__ggml__bos_token_id": (I32, -1)}, "bos_token_id"),
        ({"tokenizer__ggml__add_bos_token": (U32, 1)}, "add_bos_token: expected bool"),
        (sentencepiece(tokenizer__ggml__scores=None), "scores: is missing"),
        (sentencepiece(tokenizer__ggml__scores=((ARRAY, F32), [float("nan")] * 272)), "scores: expected finite"),
    ],
)
def test_malformed_vocabularies_are_named(tmp_path, change, named):
    with pytest.raises(FormatError) as caught:
        tokenizer(tmp_path / "m.gguf", **change)
    assert named in str(caught.value)


def test_arguments_are_checked():
    made = load_checkpoint("tiny").tokenizer
    with pytest.raises(JpoError, match="expected a str, got bytes"):
        made.encode(b"x")
    with pytest.raises(JpoError, match="lone surrogate"):
        made.encode("a\ud800")
    with pytest.raises(JpoError, match="-1 is no token id"):
        made.decode([5, -1])
    assert made.decode(np.array([5, 6])) == made.decode([5, 6])
