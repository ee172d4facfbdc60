"""Every form of every stage's records, the drops that are counted and the errors that name file, line and key."""

import numpy as np
import pytest

from jpo.data.readers import Record
from jpo.data.records import (
    Candidate,
    Example,
    Pair,
    candidates,
    feedback_candidates,
    items_to_test,
    preference_pairs,
    sft_examples,
)
from jpo.data.report import Report
from jpo.errors import DataError, JpoError

PAPER = {"i_chosen": "I", "r_chosen": "W", "i_reject": "J", "r_reject": "L"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}


def texts(record):
    (pair,) = preference_pairs([record])
    return pair.i_chosen, pair.r_chosen, pair.i_reject, pair.r_reject


def test_the_papers_form_keeps_other_keys():
    (pair,) = preference_pairs([{**PAPER, "weak": True, "id": 7}], "mine")
    assert pair == Pair("I", "W", "J", "L", True, {"id": 7}, "mine[0]")
    assert pair.joint
    assert pair.to_record() == {**PAPER, "weak": True, "id": 7}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "I", "chosen": "W", "rejected": "L"}, ("I", "W", "I", "L")),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            ("The sky is", " blue.", "The sky is", " green."),
        ),
        ({"chosen": "Q: so? A: yes", "rejected": "Q: so? A: yellow"}, ("Q: so? A:", " yes", "Q: so? A:", " yellow")),
        ({"chosen": "Assistant:Yes", "rejected": "Assistant:No"}, ("Assistant:", "Yes", "Assistant:", "No")),
        ({"chosen": "Say it. a b", "rejected": "Say it. a b c"}, ("Say it. a", " b", "Say it. a", " b c")),
        ({"chosen": "天空是蓝", "rejected": "天空是绿"}, ("天空是", "蓝", "天空是", "绿")),
        ({"prompt": [user("I")], "chosen": [assistant("W")], "rejected": [assistant("L")]}, ("I", "W", "I", "L")),
        ({"chosen": [user("I"), assistant("W")], "rejected": [user("I"), assistant("L")]}, ("I", "W", "I", "L")),
        ({"chosen": [user("I"), assistant("W")], "rejected": [user("J"), assistant("L")]}, ("I", "W", "J", "L")),
        (
            {"prompt": "I", "chosen": [user("I"), assistant("W")], "rejected": [user("I"), assistant("L")]},
            ("I", "W", "I", "L"),
        ),
        (
            {"chosen": [SYSTEM, user("I"), assistant("W")], "rejected": [SYSTEM, user("I"), assistant("L")]},
            ((SYSTEM, user("I")), "W", (SYSTEM, user("I")), "L"),
        ),
        (
            {"chosen": [SYSTEM, user("I"), assistant("W")], "rejected": [SYSTEM, user("J"), assistant("L")]},
            ((SYSTEM, user("I")), "W", (SYSTEM, user("J")), "L"),
        ),
        (
            {"chosen": [user("I"), assistant("a"), user("b"), assistant("W")], "rejected": [user("I"), assistant("L")]},
            ("I", (assistant("a"), user("b"), assistant("W")), "I", "L"),
        ),
        (
            {
                "prompt": [user([{"type": "text", "text": "I"}])],
                "chosen": [assistant("W")],
                "rejected": [assistant("L")],
            },
            ("I", "W", "I", "L"),
        ),
        (
            {"i_chosen": [user("I")], "r_chosen": "W", "i_reject": [user("J")], "r_reject": [assistant("L")]},
            ("I", "W", "J", "L"),
        ),
        (
            {
                "prompt": np.array([user("I")]),
                "chosen": np.array([assistant("W")]),
                "rejected": np.array([assistant("L")]),
            },
            ("I", "W", "I", "L"),
        ),
        ({**PAPER, "prompt": None, "chosen": float("nan"), "rejected": None}, ("I", "W", "J", "L")),
    ],
)
def test_forms_of_preferences(record, expected):
    assert texts(record) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r_chosen": None}, r"key 'r_chosen' is missing or null; got i_chosen, i_reject, r_reject"),
        ({"i_reject": 3}, r"i_reject: expected a string .* got int 3"),
        ({"i_reject": {"a": 1}}, r"i_reject: expected a string .* got dict"),
        ({"r_reject": "a\ud800"}, r"r_reject: character 1 is half a surrogate pair"),
        ({"weak": 1}, r"weak: expected true or false, got 1"),
        ({"i_chosen": [{"content": "x"}]}, r"i_chosen\[0\]: expected a message"),
        (
            {"i_chosen": [{"role": "boss", "content": "x"}]},
            r"i_chosen\[0\]: role: expected one of system, .* got 'boss'",
        ),
        ({"i_chosen": [{"role": "user", "content": None}]}, r"i_chosen\[0\]: content: expected a string, got NoneType"),
        ({"i_chosen": [user([{"type": "image"}])]}, r"i_chosen\[0\]: content: expected text parts alone"),
        (
            {"r_chosen": [user("x"), assistant("y")]},
            r"r_chosen: expected the assistant's turns alone, got user, assistant",
        ),
    ],
)
def test_unusable_preferences_name_file_line_and_key(change, message):
    record = Record({**PAPER, **change}, "pairs.jsonl", ", line 12")
    with pytest.raises(DataError, match=r"^pairs\.jsonl, line 12: " + message):
        preference_pairs([record])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "x"}, r"no preference record: expected the keys i_chosen.*; got question"),
        ({}, r"no preference record: .*; got none"),
        ({"chosen": "Yes", "rejected": "No"}, r"no common beginning to take as the prompt; give the key prompt"),
        ({"chosen": "a", "rejected": [assistant("b")]}, r"expected both texts or both conversations"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, r"chosen: expected a prompt's turns and then"),
        ({"chosen": [user("a"), user("b")], "rejected": [user("a"), user("c")]}, r"got user, user"),
    ],
)
def test_records_of_no_known_form(record, message):
    with pytest.raises(DataError, match=r"^records\[0\]: .*" + message):
        preference_pairs([record])
    with pytest.raises(DataError, match=r"records\[0\]: expected a mapping, got str"):
        preference_pairs(["x"])


def test_what_teaches_nothing_is_dropped_and_counted():
    rows = [
        PAPER,
        {**PAPER, "r_chosen": " \n"},
        {**PAPER, "i_reject": ""},
        {**PAPER, "i_reject": "I", "r_reject": "W"},
        {"chosen": "a b", "rejected": "a b"},
        {"chosen": "a b ", "rejected": "a b c"},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
        {"prompt": [user(" ")], "chosen": "a", "rejected": "b"},
    ]
    report = Report()
    assert len(preference_pairs(rows, report=report)) == 1
    assert (report.records, report.kept) == (8, 1)
    assert report.dropped == {
        "blank r_chosen": 1,
        "blank i_reject": 1,
        "both sides are equal": 3,
        "blank response": 1,
        "blank prompt": 1,
    }
    assert report.places["both sides are equal"] == ["records[3]", "records[4]", "records[6]"]
    with pytest.warns(UserWarning, match="7 of 8 records dropped"):
        preference_pairs(rows)


def test_sft_forms():
    rows = [
        {"instruction": "I", "response": "R", "id": 1},
        {"prompt": "I", "completion": "R"},
        {"prompt": [user("I")], "completion": [assistant("R")]},
        {"messages": [user("I"), assistant("R")]},
        {"messages": [SYSTEM, user("I"), assistant("R")]},
    ]
    got = sft_examples(rows)
    assert got[0] == Example("I", "R", {"id": 1}, "records[0]")
    assert [(example.instruction, example.response) for example in got[1:4]] == [("I", "R")] * 3
    assert (got[4].instruction, got[4].response) == ((SYSTEM, user("I")), "R")
    with pytest.raises(DataError, match="key 'response' is missing"):
        sft_examples([{"instruction": "I"}])
    with pytest.raises(DataError, match="no example: expected the keys"):
        sft_examples([{"text": "I"}])
    with pytest.raises(DataError, match="messages: expected a prompt's turns and then the assistant's, got user"):
        sft_examples([{"messages": [user("I")]}])


def test_candidates_and_feedback():
    conditional = {"instruction": "I", "response_0": "A", "response_1": "B", "id": "x"}
    joint = {"instruction_0": "I", "response_0": "A", "instruction_1": "J", "response_1": "B", "label_0": "chosen"}
    got = candidates([conditional, {**joint, "label_1": None, "feedback": 1.0}])
    assert got[0] == Candidate("I", "A", "I", "B", extra={"id": "x"}, where="records[0]")
    assert got[1] == Candidate("I", "A", "J", "B", "chosen", None, 1, True, {}, "records[1]")
    judged = feedback_candidates([{**conditional, "feedback": value} for value in (0, 2, None)])
    assert [candidate.feedback for candidate in judged] == [0, 2, None]
    with pytest.raises(DataError, match=r"records\[0\]: the key feedback is missing"):
        feedback_candidates([conditional])
    for value in (3, True, "3", 0.5, [0]):
        with pytest.raises(DataError, match=r"feedback: expected 0, 1, 2 \(equal\) or null \(failed\), got"):
            candidates([{**conditional, "feedback": value}])
    with pytest.raises(DataError, match="label_0: expected 'chosen', 'rejected' or null, got 'C'"):
        candidates([{**joint, "label_0": "C"}])
    with pytest.raises(DataError, match="both instruction and instruction_0"):
        candidates([{**joint, "instruction": "I"}])
    with pytest.raises(DataError, match="no candidate"):
        candidates([{"a": 1}])


def test_test_items():
    (item,) = items_to_test([{"instruction": "I", "gold_response": "G", "subreddit": "s"}])
    assert (item.instruction, item.gold_response, item.extra) == ("I", "G", {"subreddit": "s"})
    with pytest.raises(DataError, match="key 'gold_response' is missing"):
        items_to_test([{"instruction": "I"}])
    with pytest.raises(JpoError, match="no test item"):
        items_to_test([{"a": 1}])


def test_two_reports_say_the_same_line_once():
    first, later = Report(records=3, kept=3), Report(records=3, kept=3, sequences=6, tokens=12, longest=4)
    assert first.then(later).splitlines()[:2] == [
        "3 of 3 records kept",
        "12 tokens in 6 sequences (mean 2.0, longest 4)",
    ]
    later.drop("too long")
    later.kept = 2
    assert first.then(later).splitlines()[:2] == ["3 of 3 records kept", "2 of 3 records kept"]
