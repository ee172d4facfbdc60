"""Text of a stream token by token: what is given out adds up to the whole, never shows half a character, and ends
before a stop string."""

import pytest
from tokenizer_files import KINDS, make_tokenizer

from jpo.textstream import TextStream

TEXTS = [" Blue, of course: it is the colour of the sky.", " Grüße aus Köln 🙂🙂 und 東京!", "x\n\n\ty  z", " 🙂"]


def streamed(tokenizer, prompt, ids, stops=()):
    """(pieces, stopped) as a reader sees them."""
    stream, pieces = TextStream(tokenizer, prompt, stops), []
    for token in ids:
        text, stopped = stream.push(token)
        pieces.append(text)
        if stopped:
            return pieces, True
    text, stopped = stream.end()
    return [*pieces, text], stopped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_whole(kind, text):
    tokenizer = make_tokenizer(kind)
    prompt = tokenizer.prompt_ids("Name a colour.")
    ids = tokenizer.response_ids("Name a colour.", text)[0]
    pieces, stopped = streamed(tokenizer, prompt, ids)
    assert "".join(pieces) == tokenizer.decode_continuation(prompt, ids) and not stopped
    whole = "\ufffd" not in tokenizer.decode_continuation(prompt, ids)
    assert not whole or not any("\ufffd" in piece for piece in pieces), "half a character was given out"


@pytest.mark.parametrize("stops", [["course"], ["sky", ", of"], ["e, of cou"], ["B"], ["ue"], ["nothing of it", "."]])
def test_a_stop_string_ends_the_text_and_no_part_of_it_is_given_out(stops):
    tokenizer = make_tokenizer("bytes")
    prompt, ids = tokenizer.prompt_ids("Name"), tokenizer.encode(TEXTS[0])
    pieces, stopped = streamed(tokenizer, prompt, ids, stops)
    assert stopped and "".join(pieces) == TEXTS[0][: min(p for s in stops if (p := TEXTS[0].find(s)) >= 0)]


def test_the_beginning_of_a_stop_string_waits_and_is_given_out_in_the_end():
    tokenizer = make_tokenizer("bytes")
    stream = TextStream(tokenizer, tokenizer.encode("a"), ["sky.!"])
    given = "".join(stream.push(token)[0] for token in tokenizer.encode(" the sky."))
    assert given == " the " and stream.end() == ("sky.", False)


def test_bytes_that_are_no_text_come_out_as_the_decoder_has_them():
    tokenizer = make_tokenizer("bytes")
    lone = tokenizer.encode("é")[:1] if len(tokenizer.encode("é")) > 1 else [tokenizer.backend.token_to_id("Ã")]
    ids = [*lone, *tokenizer.encode(" then"), *lone]
    pieces, _ = streamed(tokenizer, tokenizer.encode("a"), ids)
    assert "".join(pieces) == tokenizer.decode(ids) and "\ufffd" in "".join(pieces)
