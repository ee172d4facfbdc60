"""`jpo annotate --select`: a round is asked, answered, and the next one chosen meanwhile; a restart goes on in it."""

import time

import numpy as np
import pytest
from web.test_pages import Person, Site

import jpo
from jpo.errors import JpoError
from jpo.evaluate.sampling import encoder_of
from jpo.feedback.selection import STRATEGIES, fit_head, next_batch
from jpo.web.annotate import _LOOK_SECONDS
from jpo.web.rounds import Rounds

WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
RECORDS = [
    {"instruction_0": f"Say {word}.", "response_0": f" {word}", "instruction_1": f"Name {place}.", "response_1": " it is it"}
    for place, word in enumerate(WORDS)
]  # fmt: skip
GOLD = {"instruction": "Gold", "response_0": "good", "response_1": "bad", "gold": 0}


@pytest.fixture(scope="module")
def lm():
    return jpo.load("tiny")


def rounds_of(site, strategy, lm, **options):
    return Rounds(site.project, strategy, 4, lm, encoder_of(lm), **options)


def answer_all(site, person):
    """The keys of what was asked; side 0 is always chosen."""
    person.read(person.http.get("/").text)
    seen = []
    while person.showing is not None:
        showing = next(s for s in site.store.showings() if s.id == person.showing)
        seen.append(showing.item)
        person.say("right" if showing.swapped else "left")
    return seen


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rounds_follow_the_answers_and_a_restart_goes_on(strategy, lm, tmp_path):
    site = Site(tmp_path, [*RECORDS, GOLD], in_rounds=True)
    rounds = rounds_of(site, strategy, lm)
    seen = []
    for turn in range(3):
        assert site.project.round_is_over() and not site.project.finished()
        batch = rounds.choose()
        assert len(batch) == 4 and not set(batch) & set(site.project.asked())
        site.project.release(batch)
        assert not site.project.round_is_over(), "people are at it"
        if turn == 1:  # another server goes on in the same round, and would have chosen the same
            expected = rounds
            site.store.close()
            site = Site(tmp_path, [*RECORDS, GOLD], in_rounds=True)
            rounds = rounds_of(site, strategy, lm)
            assert not site.project.round_is_over() and site.project.asked()[4:] == batch
            expected.project = site.project
            assert rounds.choose() == expected.choose()
        anna = Person(site)
        seen += answer_all(site, anna)
        waiting = "The next questions are being chosen." in anna.http.get("/").text
        assert waiting is (turn < 2)
    assert sorted(seen) == sorted(site.project.items.by_key) and site.project.finished() and rounds.choose() == []
    site.store.close()


def test_a_linear_refit_and_an_adapter_choose_by_what_was_said(lm, tmp_path):
    site = Site(tmp_path, RECORDS, in_rounds=True)
    rounds = rounds_of(site, "margin", lm)
    site.project.release(rounds.choose())
    answer_all(site, Person(site))
    keys = list(site.project.items.by_key)
    asked = [keys.index(key) for key in site.project.asked()]
    margins = rounds._features @ fit_head(rounds._features[asked], np.ones(4))
    wanted = [keys[place] for place in next_batch("margin", 4, margins, answered=asked)]
    assert rounds.choose() == wanted
    trained = rounds_of(
        site, "margin", lm, refit="adapter", training={"epochs": 2, "max_length": 64, "max_prompt_length": 32}
    )
    batch = trained.choose()
    assert len(batch) == 4 and not set(batch) & set(site.project.asked())
    lm.remove_adapter()
    with pytest.raises(JpoError, match="refit: expected one of linear, adapter"):
        rounds_of(site, "margin", lm, refit="head")
    site.store.close()


def test_the_server_chooses_while_people_wait_and_says_what_failed(tmp_path):
    site = Site(tmp_path, RECORDS, in_rounds=True)
    keys = list(site.project.items.by_key)
    batches = [keys[:2], keys[2:5], None]
    site.pages.choose = lambda: batches.pop(0) or 1 / 0
    ended = []
    site.pages.when_failed = lambda: ended.append(True)

    def until(condition):
        end = time.monotonic() + 30 * _LOOK_SECONDS
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    with site.browser():
        anna = Person(site)
        assert anna.showing is None and "being chosen" in anna.html
        until(lambda: len(site.project.asked()) == 2)
        assert answer_all(site, anna) and "being chosen" in anna.html
        until(lambda: len(site.project.asked()) == 5)
        answer_all(site, anna)
        until(lambda: ended)
    assert isinstance(site.pages.failure, ZeroDivisionError)
    site.store.close()


@pytest.mark.parametrize("options, message", [
    (["--select", "dopt"], "a model is needed"), (["--model", "tiny"], "only --select knows them"),
])  # fmt: skip
def test_wrong_options_are_named(options, message, tmp_path, capsys):
    from jpo.cli.main import main

    path = tmp_path / "in.jsonl"
    path.write_text('{"instruction": "a", "response_0": "b", "response_1": "c"}\n')
    assert main(["annotate", "--input", str(path), "--output", str(tmp_path / "o"), *options]) == 1
    assert message in capsys.readouterr().err
