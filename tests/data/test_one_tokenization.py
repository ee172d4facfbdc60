"""One text, one tokenization: what follows a prompt is encoded as the joined text is, whatever the tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import KINDS, MARK, make_tokenizer

from jpo.data.encoding import Encoder
from jpo.data.records import Example, Pair
from jpo.data.templates import NAMES, TEXTS, Template

TOKENIZERS = {}


def tokenizer_of(kind):
    return TOKENIZERS.setdefault(kind, None) or TOKENIZERS.update({kind: make_tokenizer(kind)}) or TOKENIZERS[kind]


RESPONSES = [" Blue.", "Blue.", "  two spaces", "\nBlue", "\n\nBlue", " ", "", "é 猫", "s", " the sea and the moon "]
PROMPT = "### Instructions: What is the color of the sea?\n\n### Response:"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", RESPONSES)
def test_the_parts_are_the_joined_texts(kind, response):
    tokenizer = tokenizer_of(kind)
    prompt = tokenizer.prompt_ids(PROMPT)
    assert prompt == [tokenizer.bos_token_id] * tokenizer.adds_bos + tokenizer.encode(PROMPT)
    ids, crossed = tokenizer.response_ids(PROMPT, response)
    if not crossed:
        assert [*prompt, *ids] == tokenizer.prompt_ids(PROMPT + response)
    else:
        assert tokenizer.prompt_ids(PROMPT + response)[: len(prompt)] != prompt
    assert (ids, crossed) == tokenizer.response_ids(PROMPT, response, prompt)


@pytest.mark.parametrize("kind", ["prepend", "metaspace-first", "gguf"])
def test_sentencepiece_puts_no_second_mark_before_a_response(kind):
    """Encoded by itself, " Blue." begins with two marks and "Blue." with one: the fault that this rule is for."""
    tokenizer = tokenizer_of(kind)

    def spelled(ids):
        return "".join(map(tokenizer.id_to_token, ids))

    for response, alone in (
        (" Blue.", f"{MARK}Blue." if "metaspace" in kind else f"{MARK}{MARK}Blue."),
        ("Blue.", f"{MARK}Blue."),
    ):
        ids, crossed = tokenizer.response_ids(PROMPT, response)
        assert not crossed and spelled(ids) == response.replace(" ", MARK)
        assert spelled(tokenizer.encode(response)) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_across_the_boundary_leaves_the_prompt_alone(kind):
    """A prompt that ends within a word, or in a space that the next word would take."""
    tokenizer = tokenizer_of(kind)
    word = "the" if kind == "unigram" else "color"
    prompt, response = f"a {word[:-1]}", word[-1:]
    assert tokenizer.encode(f"a {word}")[: len(tokenizer.encode(prompt))] != tokenizer.encode(prompt)
    ids, crossed = tokenizer.response_ids(prompt, response)
    assert crossed
    assert MARK not in "".join(map(tokenizer.id_to_token, ids)) and tokenizer.decode(ids) == response
    if kind != "unigram":  # which cannot keep two spaces
        ids, crossed = tokenizer.response_ids("a ", word)
        assert crossed and tokenizer.decode(ids) == word


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.text(alphabet="ab theé猫\n.:", max_size=12),
    st.text(alphabet="ab thé猫\n.:", max_size=12),
)
def test_what_a_continuation_says_joins_the_prompt(kind, prompt, response):
    tokenizer = tokenizer_of(kind)
    before = tokenizer.prompt_ids(prompt)
    ids, _ = tokenizer.response_ids(prompt, response, before)
    assert tokenizer.decode(before) + tokenizer.decode_continuation(before, ids) == tokenizer.decode([*before, *ids])


@pytest.mark.parametrize("kind", ["bytes", "prepend", "metaspace-first", "metaspace-always", "gguf"])
def test_a_completions_text_keeps_its_space(kind):
    """What was sampled and is trained on again is the same text and the same tokens."""
    tokenizer = tokenizer_of(kind)
    before = tokenizer.prompt_ids(PROMPT)
    for response in (" Blue.", "Blue.", "\nBlue"):
        ids, crossed = tokenizer.response_ids(PROMPT, response, before)
        assert crossed or tokenizer.decode_continuation(before, ids) == response
    assert tokenizer.decode_continuation([], tokenizer.encode("Blue")) == "Blue"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "chat"])
def test_training_meets_the_tokens_that_sampling_continues(kind, name):
    tokenizer = tokenizer_of(kind)
    encoder = Encoder(tokenizer, Template.named(name))
    for response in ("Blue.", " Blue."):
        encoded = encoder.encode("What is it?", response)
        assert encoded.prompt_ids == tuple(tokenizer.prompt_ids(encoder.prompt_text("What is it?")))
        space = " " if name == "spaced" and not response.startswith(" ") else ""
        text = TEXTS[name].replace("{instruction}", "What is it?").replace(" {response}", "") + space + response
        if not encoded.crossed:
            assert [*encoded.prompt_ids, *encoded.response_ids[:-1]] == tokenizer.prompt_ids(text)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_prompts_stay_equal_and_crossings_are_counted(kind):
    tokenizer = tokenizer_of(kind)
    encoder = Encoder(tokenizer, Template.named("raw"))
    word = "the" if kind == "unigram" else "color"
    instruction = f"a {word[:-1]}"
    pairs = encoder.pairs(
        [Pair(instruction, word[-1], instruction, " Blue"), Pair("x y", " one", instruction, word[-1])]
    )
    assert pairs[0].chosen.prompt is pairs[0].rejected.prompt
    crossed = [sequence.crossed for pair in pairs for sequence in pair.sequences]
    assert crossed == [True, False, False, True], kind
    assert encoder.report().to_dict()["crossed"] == 2
    assert "2 responses whose first characters would merge with the prompt" in str(encoder.report())
    encoder.examples([Example(instruction, word[-1])])
    assert encoder.report().crossed == 3


def test_cut_responses_keep_the_rule():
    tokenizer = tokenizer_of("prepend")
    encoder = Encoder(tokenizer, Template.named("raw"), max_length=12, max_prompt_length=8)
    encoded = encoder.encode("the sea and the moon " * 4, " the sea and the moon" * 4)
    whole = tokenizer.prompt_ids(encoder.prompt_text("the sea and the moon " * 4) + " the sea and the moon" * 4)
    assert encoded.cut_prompt and encoded.cut_response and len(encoded) == 12
    assert [*encoded.prompt_ids, *encoded.response_ids] == whole[:12]
