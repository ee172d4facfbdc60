"""The interplay of conditional and joint feedback (the paper's figures 2 and 3).

Items carry the label that conditional feedback gave them; joint feedback then compares items of different instructions.
Over chosen-chosen and rejected-rejected pairs: how often is the joint verdict decisive? Over chosen-rejected pairs:
which side wins, or neither? An item's label decides, never its position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jpo.data.records import Candidate, candidates
from jpo.data.report import Report
from jpo.data.texts import Text, plain, text_key
from jpo.errors import DataError
from jpo.evaluate.statistics import t_interval, wilson
from jpo.evaluate.winrate import text_length


def _share(successes: int, n: int) -> dict[str, Any]:
    low, high = wilson(successes, n)
    return {"share": successes / n if n else None, "n": n, "low": low if n else None, "high": high if n else None}


def _verdict(record: Mapping[str, Any], number: int) -> tuple[str, str, int] | None:
    """(label_0, label_1, feedback); None for a record without a verdict or without labels."""
    where = getattr(record, "where", f"record {number}")
    labels = record.get("label_0"), record.get("label_1")
    for key, label in zip(("label_0", "label_1"), labels, strict=True):
        if label not in ("chosen", "rejected", None):
            raise DataError(f"{where}: {key}: expected 'chosen', 'rejected' or null, got {label!r}")
    feedback = record.get("feedback")
    if feedback is not None and (isinstance(feedback, bool) or feedback not in (0, 1, 2)):
        raise DataError(f"{where}: feedback: expected 0, 1, 2 (equal) or null, got {feedback!r}")
    if feedback is None or None in labels:
        return None
    return str(labels[0]), str(labels[1]), int(feedback)


def interplay(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The shares, each {share, n, low, high} with Wilson's 95 % interval, unrounded; share None where n is 0.

    records: joint feedback, {label_0, label_1, feedback, annotator?, ...}. Where several annotators judged,
    `annotators` holds each one's shares."""
    found: list[tuple[tuple[str, str, int], str]] = []
    skipped = 0
    for number, record in enumerate(records, 1):
        verdict = _verdict(record, number)
        if verdict is None:
            skipped += 1
        else:
            found.append((verdict, str(record.get("annotator") or "")))
    result = _shares([verdict for verdict, _ in found]) | {"verdicts": len(found), "skipped": skipped}
    names = sorted({name for _, name in found})
    if len(names) > 1:
        result["annotators"] = {name: _shares([v for v, who in found if who == name]) for name in names}
    return result


def _shares(verdicts: list[tuple[str, str, int]]) -> dict[str, Any]:
    decisive = {"chosen": [0, 0], "rejected": [0, 0]}  # decisive, all
    mixed = {"chosen": 0, "rejected": 0, "neither": 0}
    for first, second, feedback in verdicts:
        if first == second:
            decisive[first][0] += feedback != 2
            decisive[first][1] += 1
        else:
            mixed["neither" if feedback == 2 else (first, second)[feedback]] += 1
    total = sum(mixed.values())
    return {
        "chosen_chosen_decisive": _share(*decisive["chosen"]),
        "rejected_rejected_decisive": _share(*decisive["rejected"]),
        "pooled_decisive": _share(
            decisive["chosen"][0] + decisive["rejected"][0], decisive["chosen"][1] + decisive["rejected"][1]
        ),
        "chosen_over_rejected": _share(mixed["chosen"], total),
        "rejected_over_chosen": _share(mixed["rejected"], total),
        "chosen_rejected_indecisive": _share(mixed["neither"], total),
    }


# --- where conditional and joint verdicts disagree ----------------------------------------------------------------

OUTCOMES = ("chosen_over_rejected", "rejected_over_chosen", "chosen_rejected_indecisive")
Likelihood = Callable[[Sequence[tuple[Text, Text]]], Sequence[float]]  # log p of responses to their instructions


def disagreements(records: Iterable[Mapping[str, Any]], likelihood: Likelihood | None = None) -> dict[str, Any]:
    """What goes with the outcome of joint verdicts over a chosen and a rejected item.

    `features` holds, for each feature and each outcome (the keys of interplay: conditional and joint agree, are
    reversed, or joint is indecisive), {mean, low, high, n} with Student's 95 % interval. Features are differences, the
    chosen item's minus the rejected one's: response_length and instruction_length in characters; instruction_score, how
    often the instruction's items win (1, 0, 1/2) in the other joint verdicts of `records`, where it has any; with
    `likelihood` (see likelihood_of) response_logp, and response_logp_per_character. `instructions` lists those that
    stand in reversed verdicts most: {instruction, reversed, n} over its chosen-rejected verdicts.
    """
    judged = [
        found
        for record in records
        for found in candidates([record], report=Report())
        if found.feedback is not None and found.instruction_0 != found.instruction_1
    ]
    mixed = [found for found in judged if {found.label_0, found.label_1} == {"chosen", "rejected"}]
    rows = [_differences(found, scores) for found, scores in zip(mixed, _leave_one_out(judged, mixed), strict=True)]
    if likelihood is not None and mixed:
        _add_likelihoods(rows, mixed, likelihood)
    outcomes = [_outcome(found) for found in mixed]
    features = {
        name: {
            outcome: t_interval(
                [row[name] for row, came in zip(rows, outcomes, strict=True) if came == outcome and name in row]
            )
            for outcome in OUTCOMES
        }
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    return {"n": len(mixed), "features": features, "instructions": _reversed_most(mixed, outcomes)}


def _sides(found: Candidate) -> tuple[tuple[Text, Text], tuple[Text, Text]]:
    """((instruction, response) of the chosen item, of the rejected one)"""
    items = (found.instruction_0, found.response_0), (found.instruction_1, found.response_1)
    return items if found.label_0 == "chosen" else items[::-1]


def _outcome(found: Candidate) -> str:
    if found.feedback == 2:
        return OUTCOMES[2]
    return OUTCOMES[0] if (found.label_0, found.label_1)[found.feedback or 0] == "chosen" else OUTCOMES[1]


def _leave_one_out(judged: Sequence[Candidate], wanted: Sequence[Candidate]) -> list[tuple[float | None, float | None]]:
    """For each wanted verdict the mean scores of its chosen and rejected instruction over all other joint verdicts."""
    sums: dict[str, list[float]] = {}  # instruction -> score, verdicts

    def scores(found: Candidate) -> tuple[tuple[str, float], tuple[str, float]]:
        first = (1.0, 0.0, 0.5)[found.feedback or 0]
        return (text_key(found.instruction_0), first), (text_key(found.instruction_1), 1.0 - first)

    for found in judged:
        for instruction, score in scores(found):
            total = sums.setdefault(instruction, [0.0, 0])
            total[0], total[1] = total[0] + score, total[1] + 1
    result = []
    for found in wanted:
        means = [
            (sums[instruction][0] - score) / (sums[instruction][1] - 1) if sums[instruction][1] > 1 else None
            for instruction, score in scores(found)
        ]
        result.append((means[0], means[1]) if found.label_0 == "chosen" else (means[1], means[0]))
    return result


def _differences(found: Candidate, scores: tuple[float | None, float | None]) -> dict[str, float]:
    chosen, rejected = _sides(found)
    row = {
        "response_length": float(text_length(plain(chosen[1])) - text_length(plain(rejected[1]))),
        "instruction_length": float(text_length(plain(chosen[0])) - text_length(plain(rejected[0]))),
    }
    if scores[0] is not None and scores[1] is not None:
        row["instruction_score"] = scores[0] - scores[1]
    return row


def _add_likelihoods(rows: Sequence[dict[str, float]], mixed: Sequence[Candidate], likelihood: Likelihood) -> None:
    items = {(text_key(i), text_key(r)): (i, r) for found in mixed for i, r in _sides(found)}
    logps = dict(zip(items, likelihood(list(items.values())), strict=True))
    for row, found in zip(rows, mixed, strict=True):
        chosen, rejected = ((logps[text_key(i), text_key(r)], text_length(plain(r))) for i, r in _sides(found))
        row["response_logp"] = chosen[0] - rejected[0]
        row["response_logp_per_character"] = chosen[0] / chosen[1] - rejected[0] / rejected[1]


def likelihood_of(lm: Any, encoder: Any) -> Likelihood:
    """log p of responses under a model (an encoder's template and lengths), for `disagreements`."""

    def score(items: Sequence[tuple[Text, Text]]) -> Sequence[float]:
        encoded = [encoder.encode(instruction, response) for instruction, response in items]
        return list(lm.sequence_logps_ids([(list(e.prompt), list(e.response)) for e in encoded]))

    return score


def _reversed_most(mixed: Sequence[Candidate], outcomes: Sequence[str], shown: int = 10) -> list[dict[str, Any]]:
    counts: dict[str, list[Any]] = {}
    for found, outcome in zip(mixed, outcomes, strict=True):
        for instruction in (found.instruction_0, found.instruction_1):
            row = counts.setdefault(text_key(instruction), [instruction, 0, 0])
            row[1], row[2] = row[1] + (outcome == OUTCOMES[1]), row[2] + 1
    most = sorted((row for row in counts.values() if row[1]), key=lambda row: (-row[1], row[2], text_key(row[0])))
    return [{"instruction": plain(text), "reversed": times, "n": n} for text, times, n in most[:shown]]


def format_disagreements(found: Mapping[str, Any]) -> str:
    """`disagreements`' features as lines to read; empty without a chosen-rejected verdict."""
    lines = []
    for name, outcomes in found["features"].items():
        parts = []
        for outcome, row in outcomes.items():
            if row["n"]:
                interval = "" if row["low"] is None else f" ({row['low']:+.4g} to {row['high']:+.4g})"
                parts.append(f"{outcome.replace('_', ' ')} {row['mean']:+.4g}{interval}")
        lines.append(f"{name.replace('_', ' ')}, chosen - rejected: {'; '.join(parts)}")
    return "\n".join(lines)
