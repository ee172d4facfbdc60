"""What the keys of a record mean: each stage's records checked and brought to one form.

Text that cannot be used (missing keys, wrong types, half a surrogate pair) is an error naming file, line and key;
text that can be but teaches nothing (blank, both sides equal) is dropped and counted. Knows no tokens and no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jpo.data.forms import nearest_form
from jpo.data.readers import Record
from jpo.data.report import Report
from jpo.data.texts import (
    Drop,
    Messages,
    Text,
    check_unicode,
    checked,
    holds_messages,
    keys_of,
    messages_of,
    plain,
    roles_of,
    shortest_form,
    text_of,
)
from jpo.errors import DataError

_PAPER = ("i_chosen", "r_chosen", "i_reject", "r_reject")


@dataclass(frozen=True)
class Pair:
    """(i_chosen, r_chosen) is preferred to (i_reject, r_reject); equal instructions make it a conditional pair."""

    i_chosen: Text
    r_chosen: Text
    i_reject: Text
    r_reject: Text
    weak: bool = False  # paired by construction, not by an annotator
    extra: dict[str, Any] = field(default_factory=dict)  # the record's other keys
    where: str = ""  # file and line
    conversational: bool = False  # the record held messages, also where one bare turn of each became a text
    tie: bool = False  # neither side is preferred

    @property
    def joint(self) -> bool:
        """Whether the two instructions differ."""
        return self.i_chosen != self.i_reject

    def to_record(self) -> dict[str, Any]:
        """As it is written to a file, under the paper's names."""
        values = (self.i_chosen, self.r_chosen, self.i_reject, self.r_reject)
        record = {key: plain(value) for key, value in zip(_PAPER, values, strict=True)}
        marks = {key: True for key in ("weak", "tie") if getattr(self, key)}
        return {**record, **marks, **self.extra}


@dataclass(frozen=True)
class Judged:
    """A response to its instruction that is good or not, without one to compare it with: what kto learns from."""

    instruction: Text
    response: Text
    label: bool
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    conversational: bool = False


@dataclass(frozen=True)
class Example:
    """An instruction and the response to learn."""

    instruction: Text
    response: Text
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    conversational: bool = False  # the record held messages


@dataclass(frozen=True)
class Candidate:
    """Two answers to compare: to one instruction (conditional), or each to its own (joint)."""

    instruction_0: Text
    response_0: Text
    instruction_1: Text
    response_1: Text
    label_0: str | None = None  # "chosen" or "rejected" in the item's conditional pair
    label_1: str | None = None
    feedback: int | None = None  # 0, 1, 2 (equal); None: not asked, or failed
    joint: bool = False  # the record's form: two instructions were given
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class TestItem:
    """An instruction to answer in an evaluation, and the answer to compare with."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    instruction: Text
    gold_response: Text
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = ""


def good_texts(record: Pair | Judged | Example) -> tuple[Text, Text]:
    """The instruction and the response of a record; of a pair, those that are preferred."""
    return (record.i_chosen, record.r_chosen) if isinstance(record, Pair) else (record.instruction, record.response)


T = TypeVar("T")


def preference_pairs(
    records: Iterable[Mapping[str, Any]], source: str = "records", report: Report | None = None
) -> list[Pair]:
    """Preference records in every form that is read, as pairs.

    Forms: the paper's {i_chosen, r_chosen, i_reject, r_reject}; TRL's {prompt, chosen, rejected}; TRL's implicit
    prompt {chosen, rejected}, whose common beginning is the prompt; each of these with conversations (lists of
    {role, content}) for texts. Without a common beginning, conversations are joint pairs: each side's last turn is
    its response. Other keys go to `extra`. Blank texts and equal sides are dropped, counted in `report`, or warned of
    where none is given.
    """
    return _collect(_pair, records, source, report)


def judged_examples(
    records: Iterable[Mapping[str, Any]], source: str = "records", report: Report | None = None
) -> list[Judged]:
    """TRL's unpaired {prompt, completion, label}, as judged examples."""
    return _collect(_judged, records, source, report)


def sft_examples(
    records: Iterable[Mapping[str, Any]], source: str = "records", report: Report | None = None
) -> list[Example]:
    """{instruction, response}, {prompt, completion}, {messages} (the last turn is the response) or Alpaca's
    {instruction, input, output}, as examples. Of {prompt, completion, label} those whose label is true."""
    return _collect(_example, records, source, report)


def candidates(
    records: Iterable[Mapping[str, Any]], source: str = "records", report: Report | None = None
) -> list[Candidate]:
    """Conditional {instruction, response_0, response_1} and joint {instruction_0, response_0, instruction_1,
    response_1} candidates, with label_0, label_1 and feedback where they carry them."""
    return _collect(_candidate, records, source, report)


def feedback_candidates(
    records: Iterable[Mapping[str, Any]], source: str = "records", report: Report | None = None
) -> list[Candidate]:
    """Candidates that must carry the key `feedback`: 0, 1, 2, or null where the annotator failed."""
    listed = list(records)
    for index, record in enumerate(listed):
        if isinstance(record, Mapping) and "feedback" not in record:
            where = record.where if isinstance(record, Record) else f"{source}[{index}]"
            raise DataError(f"{where}: the key feedback is missing; jpo feedback adds it to candidates")
    return _collect(_candidate, listed, source, report)


def items_to_test(
    records: Iterable[Mapping[str, Any]], source: str = "records", report: Report | None = None
) -> list[TestItem]:
    """{instruction, gold_response, ...}, as test items."""
    return _collect(_test_item, records, source, report)


def _collect(
    convert: Callable[[dict[str, Any], str], T],
    records: Iterable[Mapping[str, Any]],
    source: str,
    report: Report | None,
) -> list[T]:
    own = Report() if report is None else report
    result = list(_converted(lambda _: convert, records, source, own))
    if report is None:
        own.warn()
    return result


def _converted(
    choose: Callable[[Mapping[str, Any]], Callable[[dict[str, Any], str], T]],
    records: Iterable[Mapping[str, Any]],
    source: str,
    report: Report,
) -> Iterator[T]:
    """One by one: what choose(record) makes of each record; those of no use are counted."""
    for index, record in enumerate(records):
        where = record.where if isinstance(record, Record) else f"{source}[{index}]"
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected a mapping, got {type(record).__name__}")
        report.records += 1
        present = {key: value for key, value in record.items() if not _absent(value)}
        try:
            made = choose(record)(present, where)
        except Drop as reason:
            report.drop(str(reason), where)
        else:
            report.kept += 1
            yield made


def stream_pairs(records: Iterable[Mapping[str, Any]], report: Report) -> Iterator[Pair | Judged]:
    """Preference records and judged ones, each in its form, one by one and in their order."""
    return _converted(lambda record: _judged if is_judged(record) else _pair, records, "records", report)


def stream_examples(records: Iterable[Mapping[str, Any]], report: Report) -> Iterator[Example]:
    """What sft_examples gives, one by one."""
    return _converted(lambda _: _example, records, "records", report)


def _absent(value: Any) -> bool:
    """Null, and the NaN that pandas writes for it: tables fill up with them where records differ in their keys."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _pair(record: dict[str, Any], where: str) -> Pair:
    if "chosen" in record and "rejected" in record and not any(key in record for key in _PAPER):
        used: tuple[str, ...] = ("prompt", "chosen", "rejected")
        texts = _trl_texts(record, where)
    elif any(key in record for key in _PAPER):
        used = _PAPER
        texts = _four(record, _PAPER, where)
    else:
        expected = "i_chosen, r_chosen, i_reject, r_reject, or prompt, chosen, rejected, or chosen, rejected"
        raise _no_form("preference record", expected, record, where)
    if texts[0] == texts[2] and texts[1] == texts[3]:
        raise Drop("both sides are equal")
    weak, tie = (_boolean(record, key, where) for key in ("weak", "tie"))
    talks = holds_messages(record, used)
    return Pair(*texts, weak, _rest(record, (*used, "weak", "tie")), where, talks, tie)


def _no_form(what: str, expected: str, record: Mapping[str, Any], where: str) -> DataError:
    return DataError(f"{where}: no {what}: expected the keys {expected}; got {keys_of(record)}; {nearest_form(record)}")


def _boolean(record: Mapping[str, Any], key: str, where: str, numbers: bool = False) -> bool:
    """True or false (false where it is missing), also as spelled in a table of texts; with `numbers` also 1 and 0."""
    value = record.get(key, False)
    if hasattr(value, "item") and not isinstance(value, str):  # NumPy's booleans and integers, out of pandas
        value = value.item()
    if isinstance(value, str) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    if isinstance(value, bool) or (numbers and value in (0, 1)):
        return bool(value)
    raise DataError(f"{where}: {key}: expected true or false, got {value!r}")


_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def _trl_texts(record: dict[str, Any], where: str) -> tuple[Text, Text, Text, Text]:
    """TRL's forms as (i_chosen, r_chosen, i_reject, r_reject).

    A conversational `chosen` beside a plain `prompt` holds its prompt itself, as TRL too takes it.
    """
    sides = [messages_of(record[key]) for key in ("chosen", "rejected")]
    if (sides[0] is None) != (sides[1] is None):
        raise DataError(f"{where}: chosen and rejected: expected both texts or both conversations")
    if "prompt" in record and (sides[0] is None or messages_of(record["prompt"]) is not None):
        prompt = text_of(record, "prompt", where)
        return prompt, text_of(record, "chosen", where), prompt, text_of(record, "rejected", where)
    if sides[0] is None:
        for key in ("chosen", "rejected"):
            text_of(record, key, where)
        prompt, chosen, rejected = _split_text(record["chosen"], record["rejected"], where)
        return prompt, chosen, prompt, rejected
    turns = [checked(record[key], key, where) for key in ("chosen", "rejected")]
    return _split_turns(turns[0], turns[1], where)


def _split_text(chosen: str, rejected: str, where: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected): the common beginning up to a word's end; the one space after it goes to the answers.

    TRL cuts at the first unequal character, also within a word; here the word goes to the answers as a whole.
    """
    if chosen == rejected:
        raise Drop("both sides are equal")
    shortest = min(len(chosen), len(rejected))
    cut = next((at for at in range(shortest) if chosen[at] != rejected[at]), shortest)
    end, sides = cut, (chosen, rejected)
    while end and chosen[end - 1].isalnum() and any(s[end : end + 1].isalnum() or end == len(s) for s in sides):
        end -= 1
    if not chosen[:end].strip() and not chosen[:cut].isascii():
        end = cut  # scripts without spaces
    if chosen[end - 1 : end] == " ":
        end -= 1
    if not chosen[:end].strip():
        raise DataError(f"{where}: chosen and rejected: no common beginning to take as the prompt; give the key prompt")
    if not chosen[end:].strip() or not rejected[end:].strip():
        raise Drop("blank response")
    return chosen[:end], chosen[end:], rejected[end:]


def _split_turns(chosen: Messages, rejected: Messages, where: str) -> tuple[Text, Text, Text, Text]:
    """The common turns are the prompt; where there are none, each side's last turn alone is its response."""
    if chosen == rejected:
        raise Drop("both sides are equal")
    shortest = min(len(chosen), len(rejected)) - 1  # a response of one turn at least
    end = next((at for at in range(shortest) if chosen[at] != rejected[at]), shortest)
    if end > 0 and chosen[end - 1]["role"] != "assistant" and _asks(chosen[:end]):
        halves = [(side[:end], side[end:]) for side in (chosen, rejected)]
    else:
        halves = [(side[:-1], side[-1:]) for side in (chosen, rejected)]
    texts: list[Text] = []
    for key, (prompt, answer) in zip(("chosen", "rejected"), halves, strict=True):
        if not prompt or answer[0]["role"] != "assistant":
            raise DataError(
                f"{where}: {key}: expected a prompt's turns and then the assistant's, got {roles_of(prompt + answer)}"
            )
        texts += [shortest_form(prompt, "user"), shortest_form(answer, "assistant")]
    return texts[0], texts[1], texts[2], texts[3]


def _asks(turns: Messages) -> bool:
    return any(turn["role"] != "system" for turn in turns)


def _judged(record: dict[str, Any], where: str) -> Judged:
    used = ("prompt", "completion")
    instruction, response = (text_of(record, key, where) for key in used)
    label = _boolean(record, "label", where, numbers=True)
    talks = holds_messages(record, used)
    return Judged(instruction, response, label, _rest(record, (*used, "label")), where, talks)


def is_judged(record: Mapping[str, Any]) -> bool:
    """Whether a record has the form {prompt, completion, label}."""
    return all(key in record and not _absent(record[key]) for key in ("prompt", "completion", "label"))


def _example(record: dict[str, Any], where: str) -> Example:
    if is_judged(record) and not _boolean(record, "label", where, numbers=True):
        raise Drop("label is false: no answer to learn from")
    if "output" in record and "instruction" in record and "response" not in record:  # Alpaca; a line of jpo generate
        answer = text_of({"response": record["output"]}, "response", where)
        talks = holds_messages(record, ("instruction", "output"))
        return Example(
            instruction_of(record, where), answer, _rest(record, ("instruction", "input", "output")), where, talks
        )
    for used in (("instruction", "response"), ("prompt", "completion")):
        if any(key in record for key in used):
            instruction, response = (text_of(record, key, where) for key in used)
            return Example(instruction, response, _rest(record, used), where, holds_messages(record, used))
    if "messages" not in record:
        expected = "instruction, response, or prompt, completion, or messages, or instruction, input, output"
        raise _no_form("example", expected, record, where)
    turns = checked(record["messages"], "messages", where)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise DataError(f"{where}: messages: expected a prompt's turns and then the assistant's, got {roles_of(turns)}")
    prompt, answer = shortest_form(turns[:-1], "user"), shortest_form(turns[-1:], "assistant")
    return Example(prompt, answer, _rest(record, ("messages",)), where, True)


def _candidate(record: dict[str, Any], where: str) -> Candidate:
    joint = "instruction_0" in record or "instruction_1" in record
    names = ("instruction_0", "response_0", "instruction_1", "response_1")
    if not joint:
        if "instruction" not in record and "response_0" not in record:
            expected = "instruction, response_0, response_1, or instruction_0, response_0, instruction_1, response_1"
            raise _no_form("candidate", expected, record, where)
        names = ("instruction", "response_0", "instruction", "response_1")
    elif "instruction" in record:
        raise DataError(f"{where}: both instruction and instruction_0 or instruction_1; expected one of the two forms")
    texts = _four(record, names, where)
    label_0, label_1 = (_label(record, key, where) for key in ("label_0", "label_1"))
    rest = _rest(record, (*names, "label_0", "label_1", "feedback"))
    return Candidate(*texts, label_0, label_1, _feedback(record.get("feedback"), where), joint, rest, where)


def _label(record: dict[str, Any], key: str, where: str) -> str | None:
    label = record.get(key)
    if label not in (None, "chosen", "rejected"):
        raise DataError(f"{where}: {key}: expected 'chosen', 'rejected' or null, got {label!r}")
    return label


def _feedback(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and value.strip() in ("0", "1", "2"):  # out of a table of texts
        value = int(value)
    if isinstance(value, bool) or value not in (0, 1, 2):
        raise DataError(f"{where}: feedback: expected 0, 1, 2 (equal) or null (failed), got {value!r}")
    return int(value)


def _test_item(record: dict[str, Any], where: str) -> TestItem:
    used = ("instruction", "gold_response")
    if not any(key in record for key in used):
        raise _no_form("test item", ", ".join(used), record, where)
    instruction, gold = (text_of(record, key, where) for key in used)
    return TestItem(instruction, gold, _rest(record, used), where)


def instruction_of(record: Mapping[str, Any], where: str) -> Text:
    """What is to be answered: the text or conversation under `instruction`, or TRL's `prompt`; in Alpaca's form the
    instruction, a blank line, and its `input` where it has one. DataError without one."""
    key = "prompt" if "prompt" in record and "instruction" not in record else "instruction"
    try:
        text = text_of(record, key, where)
    except Drop as reason:
        raise DataError(f"{where}: {reason}: there is nothing to answer") from None
    given = record.get("input")
    if (
        key == "instruction"
        and "output" in record
        and isinstance(text, str)
        and isinstance(given, str)
        and given.strip()
    ):
        check_unicode(given, "input", where)
        return f"{text}\n\n{given}"
    return text


def _rest(record: Mapping[str, Any], used: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in used}


def _four(record: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[Text, Text, Text, Text]:
    first, second, third, fourth = (text_of(record, key, where) for key in names)
    return first, second, third, fourth
