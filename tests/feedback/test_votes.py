"""Ties kept as records, and the majority of several annotators with each one's agreement to it."""

import pytest

from jpo.cli.main import main
from jpo.data.readers import read_records, write_records
from jpo.data.records import feedback_candidates, preference_pairs
from jpo.data.report import Report
from jpo.feedback.pairs import majority_votes, preferences_from_feedback


def vote(annotator, feedback, first="A", second="B", instruction="I", **extra):
    texts = {"instruction": instruction, "response_0": first, "response_1": second}
    return {**texts, "feedback": feedback, "annotator": annotator, **extra}


def test_ties_are_kept_where_asked_for():
    records = [vote("x", 0), vote("x", 2, instruction="J"), vote("x", None, instruction="K"), vote("x", 2, "A", "A")]
    report = Report()
    kept = preferences_from_feedback(records, report=report, keep_ties=True)
    assert [(row["r_chosen"], row["r_reject"], row.get("tie")) for row in kept] == [("A", "B", None), ("A", "B", True)]
    assert report.dropped == {"failed verdict": 1, "both sides are equal": 1}
    assert [pair.tie for pair in preference_pairs(kept)] == [False, True]
    assert len(preferences_from_feedback(records, report=Report())) == 1


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [((0, 0, 1), 0), ((1, 1, 2), 1), ((0, 1), 2), ((0, 1, 2), 2), ((2, 2, 0), 2), ((None, 1), 1), ((None, None), None), ((0, 0, 1, 1), 2)],
)  # fmt: skip
def test_the_majority_decides(votes, verdict):
    records = [vote(f"a{place}", feedback) for place, feedback in enumerate(votes)]
    (found,), agreement = majority_votes(feedback_candidates(records))
    assert found.feedback == verdict
    cast = [feedback for feedback in votes if feedback is not None]
    if len(cast) > 1:
        assert found.extra == {"votes": [cast.count(value) for value in (0, 1, 2)]}
        assert agreement == {
            f"a{place}": {"agree": int(feedback == verdict), "n": 1}
            for place, feedback in enumerate(votes)
            if feedback is not None
        }
    else:
        assert agreement == {}


def test_exchanged_sides_vote_on_the_same_comparison():
    records = [vote("a", 0), vote("b", 1, "B", "A"), vote("c", 0, "B", "A"), vote("a", 1, instruction="J")]
    found, agreement = majority_votes(feedback_candidates(records))
    assert [candidate.feedback for candidate in found] == [0, 1]
    assert found[0].extra == {"votes": [2, 1, 0]} and found[1].extra == {"annotator": "a"}
    assert agreement == {"a": {"agree": 1, "n": 1}, "b": {"agree": 1, "n": 1}, "c": {"agree": 0, "n": 1}}


def test_the_command(tmp_path, capsys):
    records = [vote("a", 0), vote("b", 0), vote("c", 1), vote("a", 2, instruction="J"), vote("b", 2, instruction="J")]
    write_records(tmp_path / "f.jsonl", records)
    arguments = ["pairs", "--input", str(tmp_path / "f.jsonl"), "--output", str(tmp_path / "p.jsonl")]
    assert main([*arguments, "--majority", "--keep-ties"]) == 0
    rows = read_records(str(tmp_path / "p.jsonl"))
    assert [(row["i_chosen"], row.get("tie", False), row["votes"]) for row in rows] == [
        ("I", False, [2, 1, 0]),
        ("J", True, [0, 0, 2]),
    ]
    told = capsys.readouterr().out
    assert (
        "a: agrees with the majority in 2 of 2 (100%)" in told and "c: agrees with the majority in 0 of 1 (0%)" in told
    )
    assert main([*arguments, "--weak", "--majority"]) == 1
    assert "only preferences" in capsys.readouterr().err
