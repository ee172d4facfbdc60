"""What a trainer refuses before it begins, and how it says so."""

import copy
import pickle

import pytest

import jpo


def test_a_name_where_a_model_is_expected():
    with pytest.raises(TypeError, match=r"lm: expected a model of jpo.load\(...\), got str 'tiny'"):
        jpo.PreferenceTrainer("tiny", "example")


def test_the_other_trainer_s_config():
    examples = [{"instruction": "q", "response": "a"}]
    with pytest.raises(TypeError, match="config: expected a SFTConfig, got PreferenceConfig"):
        jpo.SFTTrainer(jpo.load("tiny"), examples, jpo.PreferenceConfig())
    with pytest.raises(TypeError, match="config: expected a PreferenceConfig, got dict"):
        jpo.PreferenceTrainer(jpo.load("tiny"), "example", {"beta": 0.1})


def test_any_iterable_of_texts_is_scored():
    lm = jpo.load("tiny")
    assert lm.sequence_logps((text for text in ["a"]), ("b",)).shape == (1,)
    with pytest.raises(jpo.errors.JpoError, match="of one length, got 2 and 1"):
        lm.sequence_logps(["a", "b"], ["c"])


def test_bounds_are_said_in_words():
    with pytest.raises(jpo.errors.JpoError, match="beta: expected a number above 0, got 0"):
        jpo.preference_loss([-1.0], [-2.0], [-1.0], [-2.0], beta=0)


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": "1"}, "temperature: expected a number, got '1'"),
    ({"temperature": None}, "temperature: expected a number, got None"),
    ({"top_p": 1j}, "top_p: expected a number, got 1j"),
    ({"seed": None}, "seed: expected a whole number, got None"),
    ({"seed": 1.5}, "seed: expected a whole number, got 1.5"),
    ({"stop": [3]}, "stop: expected strings .token ids: stop_token_ids., got 3"),
    ({"ids": []}, "ids: expected a number for each of the 1 prompts, got 0"),
])  # fmt: skip
def test_what_sampling_is_given_is_named(options, message):
    with pytest.raises(jpo.errors.JpoError, match=message):
        jpo.load("tiny").generate(["a"], max_new_tokens=1, **options)


def test_any_iterable_of_prompts_is_continued():
    lm = jpo.load("tiny")
    expected = lm.generate(["a", "b"], max_new_tokens=2)
    assert lm.generate((text for text in "ab"), max_new_tokens=2, stop=None) == expected


def test_a_text_that_is_none_is_named_by_place():
    with pytest.raises(jpo.errors.JpoError, match=r"responses\[1\]: expected a str, got NoneType"):
        jpo.load("tiny").sequence_logps(["a", "b"], ["c", None])


@pytest.mark.parametrize("way", [copy.deepcopy, pickle.dumps])
def test_a_model_says_how_it_is_carried_over(way):
    with pytest.raises(TypeError, match="load 'tiny' anew .another process too., and carry its adapter over by"):
        way(jpo.load("tiny"))
