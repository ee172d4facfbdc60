"""Forms that other tools write: Alpaca, KTO, ties, tables; and what is said of records that fit none."""

import numpy as np
import pandas
import pytest

import jpo
from jpo.data import forms
from jpo.data.forms import FORMS, nearest_form
from jpo.data.readers import read_records
from jpo.data.records import Example, Judged, judged_examples, preference_pairs, sft_examples
from jpo.data.report import Report
from jpo.errors import DataError, JpoError

GOOD = {"prompt": "I", "completion": "R", "label": True}
BAD = {"prompt": "I", "completion": "S", "label": False}


def test_alpaca():
    records = [
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        {"instruction": "Hi", "input": "", "output": "Yo"},
        {"instruction": "Hi", "output": "Yo", "temperature": 1.0},  # a line of jpo generate
    ]
    assert sft_examples(records) == [
        Example("Add.\n\n2 and 3", "5", {}, "records[0]"),
        Example("Hi", "Yo", {}, "records[1]"),
        Example("Hi", "Yo", {"temperature": 1.0}, "records[2]"),
    ]


def test_fine_tuning_does_not_learn_answers_that_are_labelled_bad():
    report = Report()
    assert sft_examples([GOOD, BAD], report=report) == [Example("I", "R", {"label": True}, "records[0]")]
    assert report.dropped == {"label is false: no answer to learn from": 1}
    with pytest.raises(JpoError, match="no record is left to train on:\n0 of 1 records kept"):
        jpo.SFTTrainer(jpo.load("tiny"), [BAD])
    other = {"instruction": "I", "response": "R", "label": "spam"}  # a label of something else
    assert sft_examples([other])[0].response == "R"


@pytest.mark.parametrize("label", [True, 1, 1.0, np.True_, np.int64(1), "true", "1", "True"])
def test_labels(label):
    assert judged_examples([{**GOOD, "label": label, "id": 3}]) == [Judged("I", "R", True, {"id": 3}, "records[0]")]


@pytest.mark.parametrize("label", ["good", 2, [True]])
def test_wrong_labels(label):
    with pytest.raises(DataError, match=r"records\[0\]: label: expected true or false, got"):
        judged_examples([{**GOOD, "label": label}])


def test_ties_are_read_and_written():
    record = {"i_chosen": "I", "r_chosen": "A", "i_reject": "I", "r_reject": "B", "tie": True, "id": 1}
    (pair,) = preference_pairs([record])
    assert pair.tie and pair.to_record() == record
    with pytest.raises(DataError, match="tie: expected true or false, got 1"):
        preference_pairs([{**record, "tie": 1}])


@pytest.mark.parametrize("dtype", [object, "string"])
def test_data_frames(dtype):
    """Not "the truth value of a DataFrame is ambiguous"."""
    frame = pandas.DataFrame({"instruction": ["I", "J"], "response": ["R", "S"], "note": [None, 1.0]})
    frame = frame.astype({"instruction": dtype, "response": dtype})
    trainer = jpo.SFTTrainer(jpo.load("tiny"), frame, eval_examples=frame)
    assert len(trainer.examples) == len(trainer.eval_sets[""]) == 2
    assert trainer.evaluate(frame)["eval_num_tokens"] > 0
    pairs = pandas.DataFrame({"prompt": ["I"], "chosen": ["R"], "rejected": ["S"]})
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), pairs, eval_pairs=pairs)
    assert len(trainer.pairs) == len(trainer.eval_sets[""]) == 1
    assert trainer.loss_and_gradients(pairs)[0]["loss"] == pytest.approx(np.log(2))


def test_csv_and_packed_pairs_train(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected,tie\nI,R,S,\n")
    assert len(jpo.PreferenceTrainer(jpo.load("tiny"), str(tmp_path / "p.csv")).pairs) == 1
    (tmp_path / "k.csv").write_text("prompt,completion,label\nI,R,true\nI,S,false\n")
    assert [found.label for found in judged_examples(read_records(str(tmp_path / "k.csv")))] == [True, False]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "I", "respones": "R"}, "nearest is an example {instruction, response}, which jpo sft reads; it lacks response (is 'respones' meant?)"),
        ({"question": "I", "answer": "R"}, "nearest is"),
        ({"prompt": "I", "chosen": "R", "rejected": "S"}, "nearest is a preference pair {prompt, chosen, rejected}, which jpo train reads"),
        ({"i_chosen": "I", "r_chosen": "R", "i_rejected": "I", "r_rejected": "S"}, "it lacks i_reject, r_reject (is 'i_rejected' meant?)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_which_form_is_nearest(record, message):
    assert message in nearest_form(record)
    with pytest.raises(DataError) as caught:
        (preference_pairs if "r_rejected" in record else sft_examples)([record])
    if "instruction" not in record:
        assert nearest_form(record) in str(caught.value)


def test_every_form_is_nearest_to_itself():
    for what, keys, reader in FORMS:
        told = nearest_form(keys)
        assert told.startswith(f"nearest is {what} {{{', '.join(keys)}}}, which {reader} reads") and "lacks" not in told


def test_a_record_of_a_hundred_thousand_keys_or_letters_is_refused_at_once():
    """Each key was compared letter by letter with each key of each form: 46 s for a line of a megabyte."""
    many = {f"key_{number}": "" for number in range(100_000)} | {"prompt": "I", "k" * 1_000_000: ""}
    with pytest.raises(DataError, match="prompt, completion"):
        sft_examples([{"prompt": "I", "chosn": "R"} | many])
    compared = []

    def compare(one, other):
        compared.append(len(other))
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "_ratio", compare)
        nearest_form(many)
    assert len(compared) < 2_000 and max(compared) <= 64
