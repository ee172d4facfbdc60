"""Pairs made of (instruction, response) items: weak joint pairs, candidates to judge, preferences from verdicts.

Every function is a pure function of its records and its seed. Knows records; never judges, models or tokens.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jpo.data.batches import permutation
from jpo.data.readers import Record
from jpo.data.records import Candidate, Pair, candidates, feedback_candidates, preference_pairs, sft_examples
from jpo.data.report import Report
from jpo.data.texts import Text, plain, text_key
from jpo.data.words import raw_words
from jpo.errors import DataError, JpoError
from jpo.feedback.agreement import majority as majority_of

KINDS = ("CC", "RR", "CR")
_WEAK, _ROUND, _DRAW, _SIDE, _MIXED, _CONDITIONAL = range(6)  # streams of random words, one for each use of the seed


@dataclass(frozen=True)
class Item:
    """A response to its instruction, with its place in the conditional pair that it comes from, if any."""

    instruction: Text
    response: Text
    label: str | None = None  # "chosen", "rejected"

    @property
    def key(self) -> tuple[str, str]:
        """What makes two items the same item."""
        return text_key(self.instruction), text_key(self.response)


# --- weak joint pairs ---------------------------------------------------------------------------------------------


def weak_joint_pairs(pairs: Sequence[Pair], seed: int = 0, report: Report | None = None) -> list[dict[str, Any]]:
    """Chosen responses over rejected responses of other instructions, each record marked as weakly labelled.

    From conditional pairs: a seeded permutation without fixed points, which also keeps equal instructions apart as
    far as any permutation can; what is left over (one instruction holding more than half of the pairs) is dropped and
    counted. Pairs that are joint already are dropped too. DataError without two different instructions.
    """
    report = Report() if report is None else report
    conditional = []
    for pair in pairs:
        if pair.joint:
            report.drop("is a joint pair already", pair.where)
        else:
            conditional.append(pair)
    groups = _numbered(text_key(pair.i_chosen) for pair in conditional)
    if len(set(groups)) < 2:
        raise DataError(
            f"weak pairs need conditional pairs of two different instructions or more; got {len(set(groups))}"
        )
    partners = _derangement(groups, seed)
    result = []
    for mine, other in enumerate(partners):
        if groups[mine] == groups[other]:
            report.drop("no partner with another instruction is left", conditional[mine].where)
            continue
        chosen, rejected = conditional[mine], conditional[other]
        result.append(Pair(chosen.i_chosen, chosen.r_chosen, rejected.i_reject, rejected.r_reject, True).to_record())
    report.kept += len(result)
    return result


def _derangement(groups: Sequence[int], seed: int) -> list[int]:
    """A permutation p of the places with groups[p[k]] != groups[k] wherever one exists.

    A random permutation, then each fault is exchanged with a place that mends it and takes no harm. Only a group that
    outnumbers all others runs out of such places: until then, one is among the places outside the group.
    """
    count = len(groups)
    partners = [int(place) for place in permutation(count, seed, _WEAK)]
    start = int(raw_words(1, seed, _WEAK, 1)[0] % count)
    cursors: dict[int, int] = {}  # per group, where its search goes on: what it passed was of no use at the time

    def mends(group: int, steps: range) -> int | None:
        for step in steps:
            other = (start + step) % count
            if groups[other] != group and groups[partners[other]] != group:
                cursors[group] = step + 1
                return other
        return None

    exhausted: set[int] = set()
    for place in range(count):
        group = groups[place]
        if groups[partners[place]] != group or group in exhausted:
            continue
        at = cursors.get(group, 0)
        other = mends(group, range(at, count))
        if other is None:
            other = mends(group, range(at))  # other groups' exchanges may have made places useful again
        if other is None:
            exhausted.add(group)
            continue
        partners[place], partners[other] = partners[other], partners[place]
    return partners


def _numbered(keys: Iterable[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


# --- joint candidates ---------------------------------------------------------------------------------------------


def items_of(records: Sequence[Mapping[str, Any]], source: str = "records", report: Report | None = None) -> list[Item]:
    """The distinct items of conditionally labelled, candidate or plain records, in their order.

    Preference records give a chosen and a rejected item; conditional candidates two items, labelled by their feedback
    if it is 0 or 1; {instruction, response} one without a label. An item that is chosen here and rejected there is
    counted and has no label.
    """
    report = Report() if report is None else report
    found: dict[tuple[str, str], Item] = {}
    contrary = set()
    for index, record in enumerate(records):
        place = record if isinstance(record, Record) else Record(record, source, f"[{index}]")
        for item in _record_items(place, report):
            known = found.setdefault(item.key, item)
            if known.label is None:
                found[item.key] = item
            elif item.label is not None and item.label != known.label:
                contrary.add(item.key)
    for key in contrary:
        report.drop("label of an item that is both chosen and rejected")
        found[key] = Item(found[key].instruction, found[key].response)
    return list(found.values())


def _record_items(record: Record, report: Report) -> list[Item]:
    if "feedback" in record or "response_0" in record:
        return [
            item
            for found in candidates([record], report=report)
            for item in (
                Item(found.instruction_0, found.response_0, found.label_0 if found.joint else _won(found.feedback, 0)),
                Item(found.instruction_1, found.response_1, found.label_1 if found.joint else _won(found.feedback, 1)),
            )
        ]
    if "output" in record and "response" not in record:  # a line of jpo generate
        record = Record({**record, "response": record["output"]}, record.source, record.place)
    if any(key in record for key in ("instruction", "completion", "messages")):
        return [Item(found.instruction, found.response) for found in sft_examples([record], report=report)]
    return [
        item
        for pair in preference_pairs([record], report=report)
        for item in (
            # the sides of a joint pair were compared with each other, which says nothing of the conditional pair
            Item(pair.i_chosen, pair.r_chosen, None if pair.joint else "chosen"),
            Item(pair.i_reject, pair.r_reject, None if pair.joint else "rejected"),
        )
    ]


def _won(feedback: int | None, side: int) -> str | None:
    if feedback not in (0, 1):
        return None
    return "chosen" if feedback == side else "rejected"


def joint_candidates(
    items: Sequence[Item], count: int | None = None, seed: int = 0, mix: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """`count` pairs of items with different instructions, to be judged; none twice in either order.

    `mix` gives the shares of chosen-chosen (CC), rejected-rejected (RR) and chosen-rejected (CR) pairs; without it all
    items are drawn alike. Default `count`: half as many as items, so that each is used about once. Which item stands
    first is random. JpoError where the items do not give as many pairs.
    """
    if count is None:
        count = len(items) // 2
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise JpoError(f"count: expected a positive integer, got {count!r}")
    if len({item.key for item in items}) != len(items):
        raise JpoError("items: some stand twice; jpo.feedback.pairs.items_of gives distinct ones")
    groups = _numbered(text_key(item.instruction) for item in items)
    drawn: list[tuple[int, int]] = []
    for stream, (kind, share) in enumerate(_counts(count, mix).items()):
        left, right = _pools(items, kind)
        drawn += _Matching(groups, left, right, kind, seed, stream).draw(share)
    order = permutation(len(drawn), seed, _MIXED)
    sides = raw_words(len(drawn), seed, _SIDE) >> np.uint64(63)
    return [_candidate(items, *(drawn[at] if side else drawn[at][::-1])) for at, side in zip(order, sides, strict=True)]


def _candidate(items: Sequence[Item], first: int, second: int) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for side, item in enumerate((items[first], items[second])):
        record[f"instruction_{side}"] = plain(item.instruction)
        record[f"response_{side}"] = plain(item.response)
    for side, item in enumerate((items[first], items[second])):
        record[f"label_{side}"] = item.label
    return record


def parse_mix(text: str) -> dict[str, float]:
    """ "CC=1,RR=1,CR=2" as shares; JpoError for other names, and for shares that are not positive in sum."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        name = name.strip().upper().replace("RC", "CR")
        if name not in KINDS or name in mix:
            raise JpoError(f"mix: expected shares such as CC=1,RR=1,CR=2, each kind once; got {text!r}")
        try:
            mix[name] = float(value)
        except ValueError:
            raise JpoError(f"mix: {name}: expected a number, got {value!r}") from None
    return mix


def _counts(count: int, mix: Mapping[str, float] | None) -> dict[str, int]:
    """`count` divided by the shares, the largest remainders rounded up."""
    if mix is None:
        return {"any": count}
    total = sum(mix.values())
    if set(mix) - set(KINDS) or not 0 < total < float("inf") or min(mix.values()) < 0:
        raise JpoError(f"mix: expected shares of {', '.join(KINDS)}, none negative, not all 0; got {dict(mix)}")
    exact = {kind: count * mix.get(kind, 0.0) / total for kind in KINDS}
    counts = {kind: int(value) for kind, value in exact.items()}
    for kind in sorted(KINDS, key=lambda kind: counts[kind] - exact[kind])[: count - sum(counts.values())]:
        counts[kind] += 1
    return {kind: value for kind, value in counts.items() if value}


def _pools(items: Sequence[Item], kind: str) -> tuple[list[int], list[int]]:
    if kind == "any":
        return list(range(len(items))), []
    by_label = {label: [at for at, item in enumerate(items) if item.label == label] for label in ("chosen", "rejected")}
    left, right = by_label["rejected" if kind == "RR" else "chosen"], by_label["rejected"] if kind == "CR" else []
    return left, right


class _Matching:
    """Draws pairs (left x right, or within left where right is empty) of different groups, none twice.

    Rounds of random matchings first, which use all items about equally; then single draws, uniform over the possible
    pairs; where most of the possible pairs are wanted, all are listed instead, so that it always ends.
    """

    def __init__(
        self, groups: Sequence[int], left: list[int], right: list[int], kind: str, seed: int, stream: int
    ):  # fmt: skip
        self.groups, self.kind, self.seed, self.stream = groups, kind, seed, stream
        self.within = kind != "CR"
        self.left, self.right = left, left if self.within else right
        self.seen: set[tuple[int, int]] = set()
        self.pairs: list[tuple[int, int]] = []

    def draw(self, count: int) -> list[tuple[int, int]]:
        possible = self._possible()
        if count > possible:
            what = "labelled " if self.kind != "any" else ""
            raise JpoError(
                f"count: {count} {self.kind} pairs were asked for, but the {what}items of different instructions give "
                f"only {possible}; ask for fewer, or give more items"
            )
        if 2 * count > possible:
            return self._listed(count)
        turn = 0
        while len(self.pairs) < count and self._round(turn, count):
            turn += 1
        self._singles(count)
        return self.pairs

    def _possible(self) -> int:
        left, right = (Counter(self.groups[at] for at in side) for side in (self.left, self.right))
        pairs = len(self.left) * len(self.right) - sum(times * right[group] for group, times in left.items())
        return pairs // 2 if self.within else pairs

    def _take(self, first: int, second: int) -> bool:
        key = (min(first, second), max(first, second))
        if self.groups[first] == self.groups[second] or key in self.seen:
            return False
        self.seen.add(key)
        self.pairs.append((first, second))
        return True

    def _listed(self, count: int) -> list[tuple[int, int]]:
        listed = [
            (first, second)
            for first in self.left
            for second in self.right
            if self.groups[first] != self.groups[second] and (first < second or not self.within)
        ]
        return [listed[at] for at in permutation(len(listed), self.seed, _ROUND, self.stream)[:count]]

    def _round(self, turn: int, count: int) -> bool:
        """One matching; False once fewer than half of its pairs were new and of different instructions."""
        first = [self.left[at] for at in permutation(len(self.left), self.seed, _ROUND, self.stream * 2, turn)]
        if self.within:
            half = len(first) // 2
            first, second = first[:half], first[half : 2 * half]
        else:
            second = [
                self.right[at] for at in permutation(len(self.right), self.seed, _ROUND, self.stream * 2 + 1, turn)
            ]
        tried = taken = 0
        for one, other in zip(first, second, strict=False):
            if len(self.pairs) == count:
                break
            tried += 1
            taken += self._take(one, other)
        return 2 * taken >= tried > 0

    def _singles(self, count: int) -> None:
        """Uniform draws over the possible pairs: the first item is weighed by how many partners it has."""
        if len(self.pairs) >= count:
            return
        partners = sorted(self.right, key=lambda at: self.groups[at])
        sorted_groups = [self.groups[at] for at in partners]
        ends: list[int] = []
        for at in self.left:
            low, high = (side(sorted_groups, self.groups[at]) for side in (bisect.bisect_left, bisect.bisect_right))
            ends.append((ends[-1] if ends else 0) + len(partners) - (high - low))
        turn = 0
        while len(self.pairs) < count:
            for word in raw_words(4096, self.seed, _DRAW, self.stream, turn):
                ticket = int(word) % ends[-1]
                place = bisect.bisect_right(ends, ticket)
                first, rest = self.left[place], ticket - (ends[place - 1] if place else 0)
                low = bisect.bisect_left(sorted_groups, self.groups[first])
                if rest >= low:  # step over the first item's own group
                    rest += bisect.bisect_right(sorted_groups, self.groups[first]) - low
                self._take(first, partners[rest])
                if len(self.pairs) == count:
                    break
            turn += 1


# --- conditional candidates ---------------------------------------------------------------------------------------


def conditional_candidates(
    records: Iterable[Mapping[str, Any]],
    per_instruction: int = 1,
    seed: int = 0,
    source: str = "records",
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """{instruction, response_0, response_1} of two different responses to one instruction, to be judged.

    records: lines of jpo generate, or {instruction, response}. At most `per_instruction` pairs of each instruction,
    drawn among all pairs of its distinct responses, none twice; which stands first is random. Equal and blank
    responses, and instructions that are left with fewer than two, are dropped and counted.
    """
    if isinstance(per_instruction, bool) or not isinstance(per_instruction, int) or per_instruction < 1:
        raise JpoError(f"per_instruction: expected a positive integer, got {per_instruction!r}")
    report = Report() if report is None else report
    groups: dict[str, dict[str, Item]] = {}
    for index, record in enumerate(records):
        place = record if isinstance(record, Record) else Record(record, source, f"[{index}]")
        for item in _record_items(place, report):
            instruction, response = item.key
            if response in groups.setdefault(instruction, {}):
                report.drop("the same response to an instruction again", place.where)
            groups[instruction].setdefault(response, item)
    result = []
    for number, items in enumerate(list(group.values()) for group in groups.values()):
        if len(items) < 2:
            report.drop("the instruction has no second response")
        possible = list(itertools.combinations(items, 2))
        order = permutation(len(possible), seed, _CONDITIONAL, number)[:per_instruction]
        sides = raw_words(len(order), seed, _CONDITIONAL, number, 1) >> np.uint64(63)
        for at, side in zip(order, sides, strict=True):
            first, second = possible[at][::-1] if side else possible[at]
            texts = {"response_0": plain(first.response), "response_1": plain(second.response)}
            result.append({"instruction": plain(first.instruction), **texts})
    return result


# --- preferences from verdicts ------------------------------------------------------------------------------------


def preferences_from_feedback(
    records: Iterable[Mapping[str, Any]],
    source: str = "records",
    report: Report | None = None,
    *,
    keep_ties: bool = False,
    majority: bool = False,
) -> list[dict[str, Any]]:
    """Judged candidates as preference records; ties (2), failed verdicts (null) and equal sides are dropped, counted.

    Labels become label_chosen and label_reject; other keys stay. Each record counts as one vote: a candidate that
    several annotators judged gives as many pairs, with `majority` one (`majority_votes`). keep_ties: ties stay as
    records with tie true (for the losses dpo_rk and dpo_davidson), the first side under the names of the chosen one.
    """
    own = Report() if report is None else report
    counted = Report()
    judged = feedback_candidates(records, source, counted)
    if majority:
        judged, agreement = majority_votes(judged, own)
        own.notes += [format_agreement(agreement)] if agreement else []
    own.records += counted.records
    own.dropped.update(counted.dropped)
    own.places.update(counted.places)
    result = []
    for candidate in judged:
        items = (
            (candidate.instruction_0, candidate.response_0, candidate.label_0),
            (candidate.instruction_1, candidate.response_1, candidate.label_1),
        )
        tie = candidate.feedback == 2 and keep_ties
        if candidate.feedback not in (0, 1) and not tie:
            own.drop("tie" if candidate.feedback == 2 else "failed verdict", candidate.where)
        elif items[0][:2] == items[1][:2]:
            own.drop("both sides are equal", candidate.where)
        else:
            chosen, rejected = items[::-1] if candidate.feedback == 1 else items
            labels = {f"label_{side}": item[2] for side, item in (("chosen", chosen), ("reject", rejected)) if item[2]}
            extra = {**labels, **candidate.extra}
            result.append(Pair(chosen[0], chosen[1], rejected[0], rejected[1], extra=extra, tie=tie).to_record())
    own.kept += len(result)
    if report is None:
        own.warn()
    return result


def majority_votes(
    judged: Sequence[Candidate], report: Report | None = None
) -> tuple[list[Candidate], dict[str, dict[str, float]]]:
    """(one candidate for each that several annotators judged, each annotator's agreement with the majority).

    Equal contents are one candidate, whichever side stands first. Its verdict is the majority's
    (agreement.majority): without one the annotators together prefer neither, a tie. Failed verdicts do not vote. The
    result carries `votes` (of the first side, the second, ties) and no `annotator`. Agreement: annotator -> {agree, n},
    over the candidates that two or more annotators judged.
    """
    groups: dict[tuple[Any, ...], list[tuple[Candidate, bool]]] = {}
    for found in judged:
        sides = [(text_key(found.instruction_0), text_key(found.response_0))]
        sides.append((text_key(found.instruction_1), text_key(found.response_1)))
        turned = (sides[1], sides[0]) in groups
        groups.setdefault((sides[1], sides[0]) if turned else tuple(sides), []).append((found, turned))
    result = []
    agreement: dict[str, dict[str, float]] = {}
    for members in groups.values():
        first = members[0][0]
        votes = [(found, _turned(found.feedback) if turned else found.feedback) for found, turned in members]
        cast = [vote for _, vote in votes if vote is not None]
        counts = [cast.count(verdict) for verdict in (0, 1, 2)]
        verdict = majority_of(cast)
        extra = {key: value for key, value in first.extra.items() if key != "annotator"}
        if len(cast) > 1:
            extra["votes"] = counts
            for found, vote in votes:
                if vote is not None:
                    row = agreement.setdefault(str(found.extra.get("annotator") or ""), {"agree": 0, "n": 0})
                    row["agree"], row["n"] = row["agree"] + (vote == verdict), row["n"] + 1
        elif len(members) == 1:
            extra = dict(first.extra)
        for repeated, _ in members[1:]:
            if report is not None:
                report.drop("another annotator's vote, counted in the majority", repeated.where)
        result.append(replace(first, feedback=verdict, extra=extra))
    return result, agreement


def _turned(feedback: int | None) -> int | None:
    return {0: 1, 1: 0}.get(feedback, feedback) if feedback is not None else None


def format_agreement(agreement: Mapping[str, Mapping[str, float]]) -> str:
    """`majority_votes`' second part as lines to read; empty where nothing was judged twice."""
    lines = [
        f"  {name or 'unnamed'}: agrees with the majority in {int(row['agree'])} of {int(row['n'])}"
        f" ({row['agree'] / row['n']:.0%})"
        for name, row in sorted(agreement.items())
    ]
    return "\n".join(["several annotators:", *lines]) if lines else ""
