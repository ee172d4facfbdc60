"""Cuts: where they fall, what they depend on, and what the report says of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpo.data.encoding import Encoder
from jpo.data.readers import read_records
from jpo.data.records import Example, Pair, preference_pairs
from jpo.data.templates import Template
from jpo.errors import DataError, JpoError
from jpo.formats import load_checkpoint
from jpo.tokenization import Tokenizer

TINY = load_checkpoint("tiny").tokenizer
LONG = "Explain how the tides of the sea follow the moon, and why there are two of them every day. 🐘 ünïcödé " * 6


class Letters(Tokenizer):
    """A tokenizer of one token a character, with or without BOS; ids 1 (BOS), 2 (EOS), else 10 + code point."""

    eos_token_id, bos_token_id, eos_token_ids, chat_template = 2, 1, [2], None

    def __init__(self, adds_bos=True, lossy=False):
        self.adds_bos, self.lossy = adds_bos, lossy

    def encode(self, text):
        return [10 + ord(character) for character in text]

    def decode(self, ids):
        return "?" if self.lossy else "".join(chr(entry - 10) for entry in ids)

    def id_to_token(self, entry):
        return {1: "<s>", 2: "</s>"}[entry]


def letters(text):
    return tuple(10 + ord(character) for character in text)


def test_prompt_and_response_with_bos_and_eos():
    encoder = Encoder(TINY)
    encoded = encoder.encode("Why?", "So.")
    assert encoded.prompt_ids == tuple(TINY.encode("### Instructions: Why?\n\n### Response:"))
    assert encoded.response_ids == (*TINY.encode(" So."), TINY.eos_token_id)
    assert not (encoded.cut_prompt or encoded.cut_response)
    with_bos = Encoder(Letters(), Template.named("raw")).encode("ab", "cd")
    assert (with_bos.prompt_ids, with_bos.response_ids) == ((1, *letters("ab")), (*letters("cd"), 2))
    without = Encoder(Letters(adds_bos=False), Template.named("raw")).encode("ab", "cd")
    assert without.prompt_ids == letters("ab") and len(without) == 5


@pytest.mark.parametrize(("mode", "kept"), [("keep_start", "abc"), ("keep_end", "hij")])
def test_only_the_instruction_is_cut(mode, kept):
    template = Template(prompt="<{instruction}>", response="{response}")
    encoder = Encoder(Letters(), template, max_length=9, max_prompt_length=6, truncation=mode)
    encoded = encoder.encode("abcdefghij", "xyz")
    assert encoded.prompt_ids == (1, *letters(f"<{kept}>"))
    assert encoded.cut_prompt and encoded.cut_response
    assert encoded.response_ids == letters("xyz")  # complete, but no room for EOS: it did not end there
    assert encoder.prompt_text("abcdefghij") == f"<{kept}>"
    assert encoder.prompt_ids("abcdefghij") == encoded.prompt_ids


def test_a_response_that_just_fits_keeps_eos():
    encoder = Encoder(Letters(), Template.named("raw"), max_length=8, max_prompt_length=4)
    fits = encoder.encode("abc", "wxy")
    assert fits.response_ids == (*letters("wxy"), 2) and len(fits) == 8 and not fits.cut_response
    cut = encoder.encode("abc", "vwxyz")
    assert cut.response_ids == letters("vwxy") and cut.cut_response and not cut.cut_prompt


def test_a_prompts_cut_does_not_depend_on_the_response():
    encoder = Encoder(TINY, max_length=60, max_prompt_length=50)
    sequences = [encoder.encode(LONG, response) for response in ("a", LONG)]
    assert sequences[0].prompt is sequences[1].prompt  # encoded once
    assert sequences[0].response_ids[-1] == TINY.eos_token_id
    assert sequences[1].response_ids[-1] != TINY.eos_token_id and len(sequences[1]) == 60


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=120),
    st.integers(36, 60),
    st.sampled_from(["keep_start", "keep_end"]),
)
def test_cut_prompts_keep_the_template_and_their_bound(instruction, bound, mode):
    encoder = Encoder(TINY, max_length=bound + 1, max_prompt_length=bound, truncation=mode)
    encoded = encoder.encode(instruction, "x")
    text = encoder.prompt_text(instruction)
    assert len(encoded.prompt) <= bound
    assert encoded.prompt_ids == tuple(TINY.encode(text))  # generation from the text meets the same tokens
    kept = text.removeprefix("### Instructions: ").removesuffix("\n\n### Response:")
    assert text == Template().prompt_text(kept)
    assert instruction.startswith(kept) if mode == "keep_start" else instruction.endswith(kept)
    assert encoded.cut_prompt == (len(TINY.encode(Template().prompt_text(instruction))) > bound)


def test_a_cut_removes_no_more_than_it_must():
    encoder = Encoder(TINY, max_prompt_length=100, max_length=200)
    assert 96 <= len(encoder.prompt_ids(LONG)) <= 100


def test_a_tokenizer_that_does_not_give_its_text_back():
    encoder = Encoder(Letters(lossy=True), Template.named("raw"), max_length=9, max_prompt_length=5)
    assert encoder.prompt_text("abcdefghij") == "abcd"


@pytest.mark.parametrize(("mode", "first", "last"), [("keep_start", "abcd", ""), ("keep_end", "", "wxyz")])
def test_a_conversation_is_cut_in_its_turns_but_not_in_the_system_turn(mode, first, last):
    class Chat(Letters):
        chat_template = "fake"

        def apply_chat_template(self, turns, add_generation_prompt=True):
            return "".join(f"[{turn['content']}]" for turn in turns)

    turns = tuple(
        {"role": role, "content": text} for role, text in (("system", "S"), ("user", "abcdef"), ("user", "uvwxyz"))
    )
    encoder = Encoder(Chat(), Template(kind="chat"), max_length=20, max_prompt_length=12, truncation=mode)
    assert encoder.prompt_text(turns) == f"[S][{first}][{last}]"
    short = Encoder(Chat(), Template(kind="chat"), max_length=20, max_prompt_length=7, truncation=mode)
    assert short.encode(turns, "x").too_long == "prompt too long without its instruction"


def test_drop_mode_cuts_nothing():
    encoder = Encoder(Letters(), Template.named("raw"), max_length=8, max_prompt_length=4, truncation="drop")
    pairs = [
        Pair("abc", "wxy", "abc", "w", where="line 1"),
        Pair("abcd", "w", "abc", "w", where="line 2"),
        Pair("abc", "w", "abcd", "w", where="line 3"),
        Pair("abc", "w", "abc", "wxyz", weak=True, where="line 4"),
        Pair("a", "vwxyz", "a", "v", weak=True, where="line 5"),
    ]
    encoded = encoder.pairs(pairs)
    assert [(pair.index, pair.weak) for pair in encoded] == [(0, False), (4, True)]
    report = encoder.report()
    assert report.dropped == {"prompt too long": 2, "response too long": 1}
    assert report.places["prompt too long"] == ["line 2", "line 3"]
    assert (report.cut_prompts, report.cut_responses, report.kept, report.records) == (0, 0, 2, 5)
    with pytest.raises(DataError, match="none of 1 pairs is left to train on"):
        encoder.pairs(pairs[1:2])


def test_the_report_counts():
    encoder = Encoder(Letters(), Template.named("raw"), max_length=8, max_prompt_length=4)
    pairs = encoder.pairs([Pair("abcdef", "wxy", "ab", "wxyzuv"), Pair("a", "w", "b", "x")])
    assert pairs[0].tokens == 8 + 8 and pairs[1].tokens == 4 + 4
    assert encoder.report().to_dict() == {
        "records": 2, "kept": 2, "sequences": 4, "cut_prompts": 1, "cut_responses": 1,
        "crossed": 0, "tokens": 24, "longest": 8, "dropped": {},
    }  # fmt: skip
    printed = str(encoder.report())
    assert "2 of 2 records kept" in printed and "cut: 1 prompts, 1 responses" in printed and "24 tokens" in printed


def test_an_item_that_several_pairs_hold_is_encoded_once():
    encoder = Encoder(TINY)
    pairs = encoder.pairs([Pair("a", "b", "c", "d"), Pair("e", "f", "a", "b")])
    assert pairs[0].chosen is pairs[1].rejected


def test_examples_and_conversations_in_a_text_template():
    encoder = Encoder(TINY)
    (encoded,) = encoder.examples([Example("I", "R")])
    assert encoded.response_ids[-1] == TINY.eos_token_id
    conversation = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    with pytest.raises(DataError, match=r"x\.jsonl, line 3: a conversation .* use the template 'chat'"):
        encoder.examples([Example(conversation, "R", where="x.jsonl, line 3")])
    with pytest.raises(DataError, match="none of 0 examples is left"):
        encoder.examples([])


def test_chat_responses_end_with_the_templates_end_of_turn():
    encoder = Encoder(TINY, Template.named("chat", TINY))
    encoded = encoder.encode("Hi", "Yo")
    assert TINY.decode(encoded.response_ids) == "Yo<|im_end|>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length: expected a positive integer, got 0"),
        ({"max_length": True}, "max_length: expected a positive integer"),
        ({"max_prompt_length": 1.5}, "max_prompt_length: expected a positive integer, got 1.5"),
        ({"max_length": 512}, "max_prompt_length: expected less than max_length = 512"),
        ({"truncation": "left"}, "truncation: expected one of keep_start, keep_end, drop; got 'left'"),
        ({"max_prompt_length": 3}, "the template alone has .* tokens"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(JpoError, match=message):
        Encoder(TINY, **options)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    with pytest.raises(JpoError, match="no end-of-sequence token"):
        Encoder(tokenizer)


def test_the_embedded_pairs_fit_the_defaults():
    encoder = Encoder(TINY)
    assert len(encoder.pairs(preference_pairs(read_records("example")))) == 32
    assert encoder.report().cut_prompts == encoder.report().cut_responses == 0
