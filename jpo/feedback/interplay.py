"""The interplay of conditional and joint feedback (the paper's figures 2 and 3).

Items carry the label that conditional feedback gave them; joint feedback then compares items of different instructions.
Over chosen-chosen and rejected-rejected pairs: how often is the joint verdict decisive? Over chosen-rejected pairs: which
side wins, or neither? An item's label decides, never its position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jpo.errors import DataError
from jpo.evaluate.statistics import wilson


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

    records: joint feedback, {label_0, label_1, feedback, annotator?, ...}. Where several annotators judged, `annotators`
    holds each one's shares."""
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
