"""Verdicts in other tools' forms: what is written is read back the same, by us and, where installed, by their own
packages."""

import csv
import json
from xml.etree import ElementTree

import pytest

from jpo.cli.main import main
from jpo.data.readers import read_records
from jpo.data.records import feedback_candidates, preference_pairs
from jpo.errors import DataError
from jpo.web.exchange import LABEL_STUDIO, candidate, exported, verdicts
from jpo.web.forms import FORMATS
from jpo.web.items import read_items

JOINT = {
    "instruction_0": 'I\n"0"',
    "response_0": "x, y",
    "instruction_1": "J",
    "response_1": "ü <b>",
    "label_0": "chosen",
}
ONE = {"instruction": "Name.", "response_0": "a", "response_1": "=1+1", "id": 7}
BY = {"annotator_kind": "human", "swapped": True, "seconds": 2.5}
ROWS = [
    {**JOINT, "feedback": 0, "annotator": "anna", **BY, "rationale": "clearer\nbetter", "tags": ["tone", "fact"]},
    {**JOINT, "feedback": 1, "annotator": "ben", **BY},
    {**ONE, "feedback": 2, "annotator": "anna", **BY},
    {**ONE, "feedback": None, "annotator": "ben", **BY, "failure": "skipped", "rationale": "cannot say"},
]  # fmt: skip
KEPT = ("feedback", "annotator", "rationale", "annotator_kind")


def essence(row):
    return {name: row.get(name) for name in (*KEPT, "instruction", *JOINT, "response_0", "response_1")}


@pytest.mark.parametrize("form", ["feedback", "csv", "label-studio", "argilla"])
def test_written_and_read_back(form, tmp_path):
    path = tmp_path / {"csv": "f.csv", "feedback": "f.jsonl"}.get(form, "f.json")
    path.write_text(exported(ROWS, form), encoding="utf-8")
    back = [row for record in read_records(str(path)) for row in verdicts(record)]
    if form == "csv":
        assert len(back) == 3, "a skipped row has no verdict in a table"
        back = [dict(row, feedback=int(row["feedback"])) for row in back]
    wanted = [essence(row) for row in ROWS if form != "csv" or row["feedback"] is not None]
    assert sorted(map(str, map(essence, back))) == sorted(map(str, wanted))
    assert len(feedback_candidates(back)) == len(wanted)
    assert [item.joint for item in read_items(str(path))] == [True, False], "the same file can be annotated again"


FORMULAS = "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-", "'quoted'", "a=1", "1-1", '=HYPERLINK("x","y")'


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    rows = [
        {"instruction": text, "response_0": text, "response_1": f"b {i}", "=name": text, "feedback": i % 3,
         "annotator": text, "rationale": text}
        for i, text in enumerate(FORMULAS)
    ]  # fmt: skip
    path = tmp_path / "f.csv"
    path.write_text(exported(rows, "csv"), encoding="utf-8", newline="")
    with open(path, encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert len(cells) == 7 * (len(rows) + 1) and not any(cell[:1] in tuple("=+-@\t\r") for cell in cells if cell)
    back = [verdict for record in read_records(str(path)) for verdict in verdicts(record)]
    assert [{**row, "feedback": int(row["feedback"])} for row in back] == rows
    path.write_text("instruction,response_0,response_1\n'=a,b,c\n")
    assert read_records(str(path))[0]["instruction"] == "'=a", "a table of others is read as it stands"


def test_preferences_train(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(exported(ROWS, "preferences"))
    pairs = preference_pairs(read_records(str(path)))
    assert [(pair.i_chosen, pair.r_reject) for pair in pairs] == [(JOINT["instruction_0"], "ü <b>"), ("J", "x, y")]
    back = [verdict for row in read_records(str(path)) for verdict in verdicts(row)]
    texts = {name: text for name, text in JOINT.items() if name != "label_0"}
    assert back[0].items() >= {**texts, "feedback": 0, "annotator": "anna"}.items() and back[1]["annotator"] == "ben"
    assert exported(back, "preferences") == path.read_text(), "the authors' files go in and out"
    assert [item.joint for item in read_items(str(path))] == [True], "both were the same comparison"
    trl = {"prompt": "Name.", "chosen": "a", "rejected": "b", "score": 3}
    assert dict(candidate(trl)) == {"instruction": "Name.", "response_0": "a", "response_1": "b", "score": 3}
    with pytest.raises(DataError, match="format: expected one of feedback, csv"):
        exported(ROWS, "xml")


def test_what_others_wrote_is_read():
    task = {"id": 3, "data": {"prompt": "Name.", "answer1": "a", "answer2": "b"}, "annotations": [
        {"completed_by": {"id": 5, "email": "anna@example.org"}, "lead_time": 3.0, "result": [
            {"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": "right"}}]},
        {"completed_by": 6, "was_cancelled": True, "result": []},
    ]}  # fmt: skip
    rows = list(verdicts(task))
    assert [(row["feedback"], row["annotator"]) for row in rows] == [(1, "anna@example.org"), (None, "6")]
    assert rows[0]["instruction"] == "Name." and rows[0]["response_1"] == "b" and rows[0]["seconds"] == 3.0
    record = {"fields": {"instruction": "I", "response_a": "a", "response_b": "b"},
              "responses": {"better": [{"value": "response_b", "user_id": "u"}]}}  # fmt: skip
    assert [(row["feedback"], row["annotator"]) for row in verdicts(record)] == [(1, "u")]
    assert candidate(ONE) is ONE and candidate({"colour": "blue"}) == {"colour": "blue"}
    with pytest.raises(DataError, match="annotations"):
        list(verdicts({"data": task["data"], "annotations": ["x"]}))


# what Label Studio 1.23.2 itself exported, as JSON-MIN and as CSV, of a conditional and a joint comparison
MIN = [
    {"instruction": "I?", "response_0": "a", "response_1": "b", "left": "I?\n\n---\n\na", "right": "I?\n\n---\n\nb",
     "id": 5, "preference": [{"selected": "left"}], "rationale": "better", "annotator": 1, "annotation_id": 1,
     "created_at": "2026-11-27T06:42:36.941382Z", "updated_at": "2026-11-27T06:42:36.941400Z", "lead_time": 2.0},
    {"instruction_0": "I", "response_0": "a", "instruction_1": "J", "response_1": "b", "left": "I\n\n---\n\na",
     "right": "J\n\n---\n\nb", "id": 6, "tie": "equal", "annotator": 1, "annotation_id": 2,
     "created_at": "2026-11-27T06:42:36.941441Z", "updated_at": "2026-11-27T06:42:36.941446Z", "lead_time": None},
]  # fmt: skip
TABLE = """"annotation_id","annotator","created_at","id","instruction","instruction_0","instruction_1","lead_time","left","preference","rationale","response_0","response_1","right","tie","updated_at"
1,"1","2026-11-27T06:42:36.941382Z",5,"I?","","",2.0,"I?

---

a","[{""selected"":""left""}]","better","a","b","I?

---

b","","2026-11-27T06:42:36.941400Z"
2,"1","2026-11-27T06:42:36.941441Z",6,"","I","J","","I

---

a","","","a","b","J

---

b","equal","2026-11-27T06:42:36.941446Z"
"""


@pytest.mark.parametrize("name, text", [("min.json", json.dumps(MIN)), ("table.csv", TABLE)], ids=["json-min", "csv"])
def test_label_studios_short_forms_are_read(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    records = read_records(str(tmp_path / name))
    first, second = (row for record in records for row in verdicts(record))
    assert {**first, "id": int(first["id"])} == {
        "instruction": "I?", "response_0": "a", "response_1": "b", "id": 5, "feedback": 0, "annotator": "1",
        "annotator_kind": "human", "rationale": "better", "seconds": 2.0,
    }  # fmt: skip
    assert second["feedback"] == 2 and second["instruction_1"] == "J" and "instruction" not in second
    assert [item.joint for item in read_items(str(tmp_path / name))] == [False, True], "it can be annotated again"
    for wrong in ({"preference": "[{"}, {"lead_time": "soon"}):
        with pytest.raises(DataError, match="preference, lead_time"):
            list(verdicts({**MIN[0], **wrong}))


def test_every_region_stands_on_a_text_of_the_configuration():
    controls = {tag.get("name"): tag.get("toName").split(",") for tag in ElementTree.fromstring(LABEL_STUDIO).iter()
                if tag.get("toName")}  # fmt: skip
    tasks = json.loads(exported(ROWS, "label-studio"))
    regions = [region for task in tasks for annotation in task["annotations"] for region in annotation["result"]]
    assert len(regions) == 5 and all(region["to_name"] in controls[region["from_name"]] for region in regions)


def test_their_own_packages_read_it():
    argilla = pytest.importorskip("argilla")
    for given in json.loads(exported(ROWS, "argilla")):
        record = argilla.Record.from_dict(given)
        again = record.to_dict()
        assert again["fields"] == given["fields"] and again["responses"].keys() == given["responses"].keys()


def test_label_studio_validates_it():
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(LABEL_STUDIO)
    for task in json.loads(exported(ROWS, "label-studio")):
        assert interface.validate_task({"data": task["data"]})
        for annotation in task["annotations"]:
            assert interface.validate_annotation(annotation), annotation


def test_the_command_converts(tmp_path, capsys):
    (tmp_path / "in.json").write_text(exported(ROWS, "label-studio"))
    for form in FORMATS:
        path = tmp_path / f"out-{form}"
        assert (
            main(
                ["annotate", "--input", str(tmp_path / "in.json"), "--output", str(path), "--convert", "--format", form]
            )
            == 0
        )
        assert path.stat().st_size and "4 verdicts" in capsys.readouterr().out
    assert main(["annotate", "--input", "x", "--output", "y", "--format", "xml"]) == 2
