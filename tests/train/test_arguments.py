"""What a trainer refuses before it begins, and how it says so."""

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
