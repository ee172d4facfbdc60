"""Verdicts in the forms of other tools, out and in: Label Studio's pairwise tasks, Argilla's records, CSV, and the
preference records that training reads (those of the paper's authors).

Label Studio: one task a comparison, {"data": ..., "annotations": [...]}, for the configuration LABEL_STUDIO; Argilla:
{"id", "fields", "metadata", "responses"} as its Record.from_dict reads them, with a label question "preference". What
comes in may name its texts in the usual ways, and stand in Label Studio's short forms (JSON-MIN, CSV: one row an
annotation); a preference pair is a comparison that was decided for its first side.
Knows records; never pages or stores.
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jpo.data.readers import Record, spreadsheet_text
from jpo.data.records import preference_pairs
from jpo.data.report import Report
from jpo.errors import DataError
from jpo.feedback.pairs import preferences_from_feedback
from jpo.web.forms import FORMATS, Format

LABEL_STUDIO = """<View>
  <Header value="Which side is better?"/>
  <Pairwise name="preference" toName="left,right"/>
  <Text name="left" value="$left"/>
  <Text name="right" value="$right"/>
  <Choices name="tie" toName="left" choice="single"><Choice value="equal"/></Choices>
  <TextArea name="rationale" toName="left"/>
</View>
"""
_JOINT = ("instruction_0", "response_0", "instruction_1", "response_1")
_PREFERENCE = ("i_chosen", "r_chosen", "i_reject", "r_reject")
_CONDITIONAL = ("instruction", "response_0", "response_1")
VERDICT = (  # what an annotator adds to a candidate
    "feedback",
    "annotator",
    "annotator_kind",
    "swapped",
    "seconds",
    "rationale",
    "tags",
    "failure",
)
_SIDES = ("left", "right", "equal")
_SHORT = ("annotation_id", "annotator", "created_at", "updated_at", "lead_time", "left", "right", "preference", "tie",
          "rationale")  # fmt: skip  # what Label Studio's short forms add to a task's own data
# how others name the texts: (instruction, side 0, side 1)
_NAMES = (
    ("instruction", "response_0", "response_1"),
    ("prompt", "response_0", "response_1"),
    ("instruction", "left", "right"),
    ("prompt", "left", "right"),
    ("prompt", "answer1", "answer2"),
    ("prompt", "text1", "text2"),
    ("prompt", "response_a", "response_b"),
    ("instruction", "response_a", "response_b"),
    ("prompt", "response1", "response2"),
    ("instruction", "response1", "response2"),
    ("question", "answer_a", "answer_b"),
)
_SAID = {"left": 0, "right": 1, "equal": 2, "tie": 2, "both": 2, "a": 0, "b": 1, "response_0": 0, "response_1": 1,
         "response_a": 0, "response_b": 1, "0": 0, "1": 1, "2": 2}  # fmt: skip


# out


def exported(rows: Iterable[Mapping[str, Any]], form: Format) -> str:
    """Feedback records as the text of a file of that form; DataError where it is none of FORMATS."""
    writers: dict[str, Callable[[list[Mapping[str, Any]]], str]] = {
        "feedback": _lines,
        "csv": _csv,
        "label-studio": lambda given: _json([_label_studio(group) for group in _comparisons(given)]),
        "argilla": lambda given: _json([_argilla(group) for group in _comparisons(given)]),
        "preferences": lambda given: _lines(preferences_from_feedback(given, report=Report())),
    }
    if form not in writers:
        raise DataError(f"format: expected one of {', '.join(FORMATS)}, got {form!r}")
    return writers[form](list(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")  # else a text with a carriage return is not quoted
    writer.writerow(map(spreadsheet_text, names))
    for row in rows:
        writer.writerow([_table_cell(row.get(name)) for name in names])
    return out.getvalue()


def _table_cell(value: Any) -> str:
    return spreadsheet_text(value) if isinstance(value, str) else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows of one comparison together, in the order of the first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        key = json.dumps([row.get(name) for name in (*_JOINT, "instruction")], sort_keys=True)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (_JOINT if "instruction_0" in row else _CONDITIONAL)}


def _rest(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (*VERDICT, *_texts(row))}


def _readable(value: Any) -> str:
    return value if isinstance(value, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value)


def _side(row: Mapping[str, Any], side: int) -> str:
    """What a person reads of one side: its response, under its own instruction where there are two."""
    if "instruction_0" in row:
        return f"{_readable(row[f'instruction_{side}'])}\n\n---\n\n{_readable(row[f'response_{side}'])}"
    return f"{_readable(row['instruction'])}\n\n---\n\n{_readable(row[f'response_{side}'])}"


def _label_studio(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    data = {**_rest(first), **_texts(first), "left": _side(first, 0), "right": _side(first, 1)}
    return {"data": data, "annotations": [_annotation(row) for row in rows]}


def _annotation(row: Mapping[str, Any]) -> dict[str, Any]:
    result: list[dict[str, Any]] = []

    def add(name: str, to: str, kind: str, value: dict[str, Any]) -> None:
        identity = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([name, row.get("annotator"), _texts(row)])).hex[:10]
        result.append({"id": identity, "from_name": name, "to_name": to, "type": kind, "value": value})

    if row.get("feedback") in (0, 1):
        add("preference", "left", "pairwise", {"selected": _SIDES[row["feedback"]]})
    elif row.get("feedback") == 2:
        add("tie", "left", "choices", {"choices": ["equal"]})
    if row.get("rationale"):
        add("rationale", "left", "textarea", {"text": [row["rationale"]]})
    kept = {name: row[name] for name in ("annotator", "swapped", "tags") if name in row}
    return {"result": result, "was_cancelled": row.get("feedback") is None, "ground_truth": False,
            "lead_time": row.get("seconds"), "meta": kept}  # fmt: skip


def _user(name: str) -> str:
    """Argilla knows people by UUID: one that the name alone decides."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"jpo annotator {name}"))


def _argilla(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    responses: dict[str, list[dict[str, Any]]] = {"preference": [], "rationale": []}
    people = {}
    for row in rows:
        user = _user(str(row.get("annotator", "")))
        people[user] = row.get("annotator")
        if row.get("feedback") is not None:
            responses["preference"].append({"value": _SIDES[row["feedback"]], "user_id": user})
        if row.get("rationale"):
            responses["rationale"].append({"value": row["rationale"], "user_id": user})
    fields = {name: _readable(value) for name, value in _texts(first).items()}
    metadata = {name: _cell(value) for name, value in _rest(first).items() if name != "id"}
    metadata["annotators"] = json.dumps(people, ensure_ascii=False)
    return {"id": str(first.get("id", _user(_cell(_texts(first))))), "fields": fields, "metadata": metadata,
            "suggestions": {}, "responses": {k: v for k, v in responses.items() if v}, "vectors": {}}  # fmt: skip


# in


def candidate(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task of Label Studio, a record of Argilla, a preference pair or one with the usual names as a candidate; any
    other record as it is."""
    if _decided(record):
        return _of_pair(record)
    if _short(record):
        own = {name: value for name, value in record.items() if name not in _SHORT and value not in ("", None)}
        return candidate(Record(own, record.source, record.place) if isinstance(record, Record) else own)
    texts = record
    for outer in ("data", "fields"):
        if isinstance(record.get(outer), dict):
            texts = record[outer]
            break
    if texts is record and ("instruction_0" in record or "response_0" in record):
        return record
    named = _named(texts)
    if named is None:
        return record
    extra = {name: record[name] for name in ("id",) if texts is not record and name in record}
    metadata = record.get("metadata") if texts is not record else None
    if isinstance(metadata, dict):
        extra |= {name: metadata[name] for name in ("label_0", "label_1") if metadata.get(name)}
    own = {**extra, **named}
    return Record(own, record.source, record.place) if isinstance(record, Record) else own


def _decided(record: Mapping[str, Any]) -> bool:
    """Whether it is a preference pair: the authors' form, or TRL's."""
    return all(name in record for name in _PREFERENCE) or ("chosen" in record and "rejected" in record)


def _short(record: Mapping[str, Any]) -> bool:
    """Whether it is a row of Label Studio's short forms."""
    return "annotation_id" in record and "annotator" in record


def _of_pair(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preference pair as the candidate whose side 0 was chosen."""
    pairs = preference_pairs([record])
    if not pairs:  # its sides are equal: nothing to compare
        return record
    texts = [pairs[0].to_record()[name] for name in _PREFERENCE]
    joint = pairs[0].joint
    own = dict(zip(_JOINT, texts)) if joint else dict(zip(_CONDITIONAL, (texts[0], texts[1], texts[3])))
    rest = {name: value for name, value in record.items() if name not in (*_PREFERENCE, "prompt", "chosen", "rejected")}
    return Record({**own, **rest}, record.source, record.place) if isinstance(record, Record) else {**own, **rest}


def _named(texts: Mapping[str, Any]) -> dict[str, Any] | None:
    if all(name in texts for name in _JOINT):
        dropped: tuple[str, ...] = ("left", "right")
        return {name: value for name, value in texts.items() if name not in dropped}
    for names in _NAMES:
        if all(isinstance(texts.get(name), (str, list)) for name in names):
            own = dict(zip(_CONDITIONAL, (texts[name] for name in names), strict=True))
            rest = {k: v for k, v in texts.items() if k not in (*names, *own, "left", "right")}
            return {**rest, **own}
    return None


def verdicts(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The feedback records that a task or record of another tool holds, or the record itself where it has feedback."""
    own = dict(candidate(record))
    if _decided(record):
        yield {**own, "feedback": 0}
    elif _short(record):
        yield {**own, **_read_annotation(_annotation_of(record))}
    elif isinstance(record.get("data"), dict):
        for annotation in record.get("annotations") or ():
            yield {**own, **_read_annotation(annotation)}
    elif isinstance(record.get("fields"), dict):
        yield from ({**own, **verdict} for verdict in _read_responses(record))
    elif "feedback" in own:
        yield own


def _annotation_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation that a row of a short form shortens; a table holds a choice as JSON."""
    preference = row.get("preference")
    try:
        seconds = float(row["lead_time"]) if row.get("lead_time") else None
        if isinstance(preference, str) and preference.startswith("["):
            preference = json.loads(preference)
    except (TypeError, ValueError):
        raise DataError("preference, lead_time: expected Label Studio's list of choices and seconds") from None
    chosen = preference if isinstance(preference, list) else [{"choices": [preference]}] if preference else []
    tie = [{"choices": [row["tie"]]}] if row.get("tie") else []
    why = [{"type": "textarea", "value": {"text": row["rationale"]}}] if row.get("rationale") else []
    return {"completed_by": row["annotator"], "lead_time": seconds,
            "result": [{"value": value} for value in [*chosen, *tie]] + why}  # fmt: skip


def _annotator(annotation: Mapping[str, Any]) -> str:
    meta, by = annotation.get("meta"), annotation.get("completed_by")
    if isinstance(meta, dict) and meta.get("annotator"):
        return str(meta["annotator"])
    return str(by.get("email") or by.get("id")) if isinstance(by, dict) else str(by) if by is not None else ""


def _read_annotation(annotation: Any) -> dict[str, Any]:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result", []), list):
        raise DataError("annotations: expected Label Studio's objects with a result each")
    row: dict[str, Any] = {"feedback": None, "annotator": _annotator(annotation), "annotator_kind": "human"}
    for region in annotation.get("result", ()):
        value = region.get("value") if isinstance(region, dict) else None
        if not isinstance(value, dict):
            continue
        said = value.get("selected") or next(iter(value.get("choices") or ()), None)
        if said is not None and str(said).lower() in _SAID:
            row["feedback"] = _SAID[str(said).lower()]
        elif value.get("text") and region.get("type") == "textarea":
            row["rationale"] = "\n".join(value["text"]) if isinstance(value["text"], list) else str(value["text"])
    if annotation.get("was_cancelled") or row["feedback"] is None:
        row |= {"feedback": None, "failure": "skipped"}
    if isinstance(annotation.get("lead_time"), (int, float)):
        row["seconds"] = annotation["lead_time"]
    meta = annotation.get("meta")
    return row | {k: meta[k] for k in ("swapped", "tags") if isinstance(meta, dict) and k in meta}


def _read_responses(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    metadata = record.get("metadata") if isinstance(record.get("metadata"), dict) else {}
    try:
        people = json.loads((metadata or {}).get("annotators") or "{}")
    except ValueError:
        people = {}
    found: dict[str, dict[str, Any]] = {}
    for question, given in (record.get("responses") or {}).items():
        for response in given if isinstance(given, list) else ():
            user = str(response.get("user_id"))
            row = found.setdefault(user, {"annotator": str(people.get(user, user)), "annotator_kind": "human"})
            value = str(response.get("value"))
            if value.lower() in _SAID and question != "rationale":
                row["feedback"] = _SAID[value.lower()]
            else:
                row["rationale"] = value
    for row in found.values():
        yield row if "feedback" in row else {**row, "feedback": None, "failure": "skipped"}
