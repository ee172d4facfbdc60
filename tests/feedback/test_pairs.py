"""Weak pairs, joint candidates and preferences from verdicts: what they hold, what they never hold, and their seeds."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpo.data.readers import read_records
from jpo.data.records import Pair, preference_pairs
from jpo.data.report import Report
from jpo.errors import DataError, JpoError
from jpo.feedback.pairs import (
    Item,
    conditional_candidates,
    items_of,
    joint_candidates,
    parse_mix,
    preferences_from_feedback,
    weak_joint_pairs,
)


def conditional(instructions):
    return [Pair(str(name), f"w{at}", str(name), f"l{at}") for at, name in enumerate(instructions)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 2**70))
def test_weak_pairs_keep_instructions_apart(instructions, seed):
    pairs = conditional(instructions)
    if len(set(instructions)) == 1:
        with pytest.raises(DataError, match="two different instructions or more; got 1"):
            weak_joint_pairs(pairs, seed)
        return
    report = Report()
    made = weak_joint_pairs(pairs, seed, report)
    assert all(record["i_chosen"] != record["i_reject"] and record["weak"] is True for record in made)
    for side, items in (("chosen", [(pair.i_chosen, pair.r_chosen) for pair in pairs]),
                        ("reject", [(pair.i_reject, pair.r_reject) for pair in pairs])):  # fmt: skip
        used = Counter((record[f"i_{side}"], record[f"r_{side}"]) for record in made)
        assert max(used.values()) == 1 and set(used) <= set(items)
    most = max(Counter(instructions).values())
    assert len(made) == len(pairs) - max(0, 2 * most - len(pairs))  # no permutation can do better
    assert report.dropped["no partner with another instruction is left"] == len(pairs) - len(made)
    assert made == weak_joint_pairs(pairs, seed)


def test_weak_pairs_differ_by_seed_and_drop_joint_ones():
    pairs = conditional(range(30))
    assert weak_joint_pairs(pairs, 0) != weak_joint_pairs(pairs, 1)
    report = Report()
    made = weak_joint_pairs([*pairs, Pair("a", "b", "c", "d", where="x, line 9")], 0, report)
    assert made == weak_joint_pairs(pairs, 0)
    assert report.dropped == {"is a joint pair already": 1} and report.places["is a joint pair already"] == [
        "x, line 9"
    ]


def test_weak_pairs_are_written_in_the_papers_form():
    record = weak_joint_pairs(conditional("ab"), 0)[0]
    assert record == {"i_chosen": "a", "r_chosen": "w0", "i_reject": "b", "r_reject": "l1", "weak": True}
    assert preference_pairs([record])[0].weak


def test_items_of_every_kind_of_record():
    records = [
        {"i_chosen": "a", "r_chosen": "1", "i_reject": "a", "r_reject": "2"},
        {"prompt": "b", "chosen": "1", "rejected": "2"},
        {"i_chosen": "c", "r_chosen": "1", "i_reject": "d", "r_reject": "2"},
        {"instruction": "e", "response_0": "1", "response_1": "2", "feedback": 1},
        {"instruction": "f", "response_0": "1", "response_1": "2", "feedback": 2},
        {"instruction": "g", "response_0": "1", "response_1": "2"},
        {"instruction": "h", "response": "1"},
        {"id": 1, "instruction": "h", "output": "2", "seed": 0},
        {
            "instruction_0": "i",
            "response_0": "1",
            "label_0": "chosen",
            "instruction_1": "j",
            "response_1": "2",
            "feedback": 1,
        },
        {"i_chosen": "a", "r_chosen": "2", "i_reject": "a", "r_reject": "3"},
    ]
    report = Report()
    got = {(item.instruction, item.response): item.label for item in items_of(records, report=report)}
    assert got == {
        ("a", "1"): "chosen", ("a", "2"): None, ("a", "3"): "rejected", ("b", "1"): "chosen", ("b", "2"): "rejected",
        ("c", "1"): None, ("d", "2"): None, ("e", "1"): "rejected", ("e", "2"): "chosen", ("f", "1"): None,
        ("f", "2"): None, ("g", "1"): None, ("g", "2"): None, ("h", "1"): None, ("h", "2"): None,
        ("i", "1"): "chosen", ("j", "2"): None,
    }  # fmt: skip
    assert report.dropped == {"label of an item that is both chosen and rejected": 1}
    assert report.records == 10


def items(labels):
    return [Item(f"i{at // 2}", f"r{at}", label) for at, label in enumerate(labels)]


def check(records, given):
    """No pair twice in either order, no equal instructions, every item one of those given, with its label."""
    known = {(item.instruction, item.response): item.label for item in given}
    seen = set()
    for record in records:
        sides = [(record[f"instruction_{side}"], record[f"response_{side}"]) for side in (0, 1)]
        assert sides[0][0] != sides[1][0]
        assert frozenset(sides) not in seen
        seen.add(frozenset(sides))
        assert [known[side] for side in sides] == [record["label_0"], record["label_1"]]


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["chosen", "rejected", None])), min_size=2, max_size=24),
       st.integers(0, 9), st.floats(0.01, 1))  # fmt: skip
def test_candidates_hold_what_they_promise(drawn, seed, share):
    given_items = [Item(f"i{group}", f"r{at}", label) for at, (group, label) in enumerate(drawn)]
    groups = Counter(group for group, _ in drawn)
    possible = sum(one * other for one, other in itertools.combinations(groups.values(), 2))
    count = max(1, round(possible * share))
    if possible == 0:
        with pytest.raises(JpoError, match="give only 0"):
            joint_candidates(given_items, count, seed)
        return
    records = joint_candidates(given_items, count, seed)
    assert len(records) == count
    check(records, given_items)
    assert records == joint_candidates(given_items, count, seed)
    with pytest.raises(JpoError, match=f"give only {possible}"):
        joint_candidates(given_items, possible + 1, seed)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.6, 1.0])
def test_the_mix_is_exact(share):
    given_items = items(["chosen", "rejected"] * 20)
    count = int(4 * 190 * share)
    records = joint_candidates(given_items, count, 3, {"CC": 1, "RR": 1, "CR": 2})
    check(records, given_items)
    kinds = Counter("".join(sorted(record[key][0] for key in ("label_0", "label_1"))) for record in records)
    assert kinds["cr"] == pytest.approx(count / 2, abs=1) and kinds["cc"] == pytest.approx(count / 4, abs=1)
    assert sum(kinds.values()) == count


def test_sides_do_not_tell_the_label_and_items_are_used_evenly():
    given_items = items(["chosen", "rejected"] * 400)
    records = joint_candidates(given_items, 400, 0, {"CR": 1})
    assert 150 < sum(record["label_0"] == "chosen" for record in records) < 250
    used = Counter(record[f"response_{side}"] for record in records for side in (0, 1))
    assert max(used.values()) <= 2
    assert len(joint_candidates(given_items, seed=1)) == 400
    assert joint_candidates(given_items, seed=1) != joint_candidates(given_items, seed=2)


def test_one_instruction_that_holds_nearly_everything():
    given_items = [Item("a", f"r{at}") for at in range(3000)] + [Item("b", "x"), Item("b", "y"), Item("c", "z")]
    records = joint_candidates(given_items, 2000, 0)
    assert len(records) == 2000
    check(records, given_items)


def test_wrong_candidates():
    given_items = items(["chosen", "rejected"] * 3)
    for count in (0, -1, 1.5, True):
        with pytest.raises(JpoError, match="count: expected a positive integer"):
            joint_candidates(given_items, count)
    with pytest.raises(JpoError, match=r"4 CC pairs were asked for, but the labelled items .* give only 3"):
        joint_candidates(given_items, 4, 0, {"CC": 1})
    with pytest.raises(JpoError, match="give only 0"):
        joint_candidates(items([None] * 6), 1, 0, {"CC": 1})
    with pytest.raises(JpoError, match="some stand twice"):
        joint_candidates(given_items * 2, 1)
    for mix in ({"CC": -1, "RR": 2}, {"CC": 0}, {"XX": 1}, {}, {"CC": float("nan")}):
        with pytest.raises(JpoError, match="mix: expected shares"):
            joint_candidates(given_items, 2, 0, mix)


def test_mix_from_text():
    assert parse_mix("CC=1, rr=.5,RC=2") == {"CC": 1.0, "RR": 0.5, "CR": 2.0}
    for text in ("", "CC", "CC=x", "AB=1", "CC=1,CC=2"):
        with pytest.raises(JpoError, match="mix: "):
            parse_mix(text)


def test_preferences_from_feedback():
    joint = {"instruction_0": "a", "response_0": "1", "instruction_1": "b", "response_1": "2"}
    labels = {"label_0": "rejected", "label_1": "chosen"}
    records = [
        {**joint, **labels, "feedback": 0, "annotator": "x"},
        {**joint, "feedback": 1},
        {"instruction": "c", "response_0": "1", "response_1": "2", "feedback": 1},
        {**joint, "feedback": 2},
        {**joint, "feedback": None},
        {"instruction": "c", "response_0": "1", "response_1": "1", "feedback": 1},
        {"instruction": "c", "response_0": " ", "response_1": "1", "feedback": 1},
    ]
    report = Report()
    made = preferences_from_feedback(records, report=report)
    assert made == [
        {"i_chosen": "a", "r_chosen": "1", "i_reject": "b", "r_reject": "2",
         "label_chosen": "rejected", "label_reject": "chosen", "annotator": "x"},
        {"i_chosen": "b", "r_chosen": "2", "i_reject": "a", "r_reject": "1"},
        {"i_chosen": "c", "r_chosen": "2", "i_reject": "c", "r_reject": "1"},
    ]  # fmt: skip
    assert report.dropped == {"tie": 1, "failed verdict": 1, "both sides are equal": 1, "blank response_0": 1}
    assert (report.records, report.kept) == (7, 3)
    with pytest.warns(UserWarning, match="4 of 7 records dropped"):
        preferences_from_feedback(records)
    with pytest.raises(DataError, match="the key feedback is missing"):
        preferences_from_feedback([joint])


def test_the_embedded_pairs_become_weak_ones():
    report = Report()
    made = weak_joint_pairs(preference_pairs(read_records("example")), 0, report)
    assert len(made) == 16 and report.dropped["is a joint pair already"] == 16


def test_conditional_candidates_out_of_samples():
    rows = [
        {"id": i, "instruction": f"i{i}", "output": f"r{s % 3}", "sample": s} for i in range(30) for s in range(4)
    ] + [{"instruction": "alone", "response": "x"}, {"instruction": "i0", "output": " "}]
    report = Report()
    made = conditional_candidates(rows, seed=1, report=report)
    assert len(made) == 30 and len({row["instruction"] for row in made}) == 30
    assert all(row["response_0"] != row["response_1"] for row in made)
    assert report.dropped == {
        "the same response to an instruction again": 30, "the instruction has no second response": 1, "blank response": 1}  # fmt: skip
    drawn = Counter((row["response_0"], row["response_1"]) for row in made)
    assert len(drawn) == 6  # every pair, in both orders
    assert made == conditional_candidates(rows, seed=1, report=Report())
    assert made != conditional_candidates(rows, seed=2, report=Report())
    every = conditional_candidates(rows, per_instruction=9, report=Report())
    pairs = {(row["instruction"], frozenset((row["response_0"], row["response_1"]))) for row in every}
    assert len(every) == len(pairs) == 90
    with pytest.raises(JpoError, match="per_instruction"):
        conditional_candidates(rows, 0)
