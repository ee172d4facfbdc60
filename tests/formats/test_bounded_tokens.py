"""Tokenizers that multiply texts, backtrack or panic: each an error in bounded time and memory; Ctrl-C while the worker
encodes."""

import json
import time

import pytest
from model_files import tokenizer_json

from jpo.errors import FormatError, JpoError
from jpo.formats import bounded_tokens
from jpo.formats.huggingface import load_tokenizer
from jpo.tokenization import Tokenizer
from tests.interrupted import assert_ends_within
from tests.peak_memory import grown


def saved(folder, **changes):
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer_json(), **changes}))
    return str(folder)


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(expression):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Sequence", "normalizers": [replace("a" * 10, String="a")] * 8},  # 10^8 characters of one: took 4 GB
        replace("x" * 100_000, String=""),
        replace("x" * 100_000, Regex="."),
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replace("aa", String="a")] * 3}] * 3},
    ],
)
def test_normalizers_that_multiply_are_refused(tmp_path, normalizer):
    start, refused = (
        time.monotonic(),
        pytest.raises(FormatError, match=r"the normalizer makes up to .* characters of one"),
    )
    with grown() as growth, refused:
        load_tokenizer(saved(tmp_path, normalizer=normalizer))
    assert growth.bytes < 50 << 20 and time.monotonic() - start < 20


def test_a_step_whose_name_is_spelled_in_escapes(tmp_path):
    text = json.dumps({**tokenizer_json(), "normalizer": replace("x" * 100_000, String="")})
    (tmp_path / "tokenizer.json").write_text(text.replace('"Replace"', '"\\u0052eplace"'))
    with pytest.raises(FormatError, match="characters of one"):
        load_tokenizer(str(tmp_path))


def test_ordinary_steps_stay_in_this_process(tmp_path):
    for changes in (
        {},
        {"normalizer": replace("\u2581", String=" ")},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace("\u2581", String=" ")],
            }
        },
        {"pre_tokenizer": split(r"\p{N}{1,3}")},
    ):
        assert not load_tokenizer(saved(tmp_path, **changes)).bounded


def test_foreign_expressions_run_in_the_worker_with_the_same_ids(tmp_path):
    plain = load_tokenizer(saved(tmp_path))
    foreign = load_tokenizer(saved(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": [
        split(r"[aeiou]+q?"), {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}))  # fmt: skip
    assert foreign.bounded and not plain.bounded
    for text in ("Name a colour: \u00e9 blue", "", " x" * 50):
        assert foreign.encode(text) == foreign.backend.encode(text, add_special_tokens=False).ids
        assert foreign.decode(foreign.encode(text)) == text


def test_expressions_that_backtrack_end_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_tokens, "SECONDS", 1.0)
    monkeypatch.setattr(bounded_tokens, "SECONDS_PER_MB", 1.0)
    start = time.monotonic()
    try:
        tokenizer = load_tokenizer(saved(tmp_path, pre_tokenizer=split(r"(x+x+)+y|((a|aa)+)+b")))
        tokenizer.encode("x" * 5000 + "a" * 5000)  # the package's own limit on retries may answer first
    except JpoError as error:
        assert "tokenizer" in str(error)
    assert time.monotonic() - start < 60  # two limits of a second and the start of workers; without a limit, years


def test_expressions_that_compile_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_tokens, "SECONDS", 3.0)
    with grown() as growth:
        try:
            load_tokenizer(saved(tmp_path, pre_tokenizer=split(r"((((a{99}){99}){99}){99}){99}")))
        except FormatError as error:
            assert "tokenizer.json" in str(error)
    assert growth.bytes < 200 << 20


def test_panics_become_errors():
    class PanicException(BaseException):
        pass

    class Panicking:
        def __getattr__(self, name):
            def call(*_, **__):
                raise PanicException("index out of bounds")

            return (
                (lambda *_, **__: None)
                if name in ("no_truncation", "no_padding", "token_to_id", "get_vocab_size")
                else call
            )

    with pytest.raises(JpoError, match="the tokenizers package fails on this text: index out of bounds"):
        Tokenizer(Panicking())
    tokenizer = Tokenizer(Panicking(), adds_bos=False)
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([])):
        with pytest.raises(JpoError):
            call()


def test_an_unknown_token_that_the_vocabulary_lacks_is_an_error(tmp_path):
    """The package takes such a file, and raises a bare Exception at the first letter that it does not know."""
    model = {**tokenizer_json()["model"], "unk_token": "<none>"}
    tokenizer = load_tokenizer(saved(tmp_path, model=model, pre_tokenizer=None))
    with pytest.raises(JpoError, match="fails on this text: .*<none>"):
        tokenizer.encode("\u4e16")


def test_ctrl_c_while_the_worker_encodes(tmp_path):
    """The package holds the interpreter's lock: Ctrl-C would wait for the end of the text if it ran in this process."""
    tokenizer = load_tokenizer(saved(tmp_path, pre_tokenizer=split(r"[aeiou]+q?")))
    assert tokenizer.bounded
    text = "word and more, " * 200_000
    assert_ends_within(0.25, lambda: tokenizer.encode(text), (0.3, 0.4, 0.5))


@pytest.mark.parametrize("largest", [1 << 31, 1 << 24])
def test_ids_that_would_need_a_place_each_are_refused(tmp_path, largest):
    """Writing such a vocabulary asked for 8 GB at once and ended the process."""
    whole = tokenizer_json()
    whole["model"]["vocab"] = {**whole["model"]["vocab"], "far": largest}
    with pytest.raises(FormatError, match=f"token id {largest} is above 16777215"):
        load_tokenizer(saved(tmp_path, model=whole["model"]))
    added = [{**whole["added_tokens"][0], "id": largest, "content": "<far>"}]
    with pytest.raises(FormatError, match="token id"):
        load_tokenizer(saved(tmp_path, added_tokens=added))
