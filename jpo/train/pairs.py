"""Preference records for training: read in every form, and checked to be what the losses can learn from.

Knows records and losses; never tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jpo.data.readers import read_records
from jpo.data.records import Judged, Pair, is_judged, judged_examples, preference_pairs
from jpo.data.report import Report
from jpo.errors import JpoError
from jpo.objectives import LOSSES
from jpo.train.config import PreferenceConfig


def read_pairs(pairs: Any, report: Report) -> list[Pair | Judged]:
    """Records of every source; pairs that are read already stay as they are, also beside others."""
    if not (isinstance(pairs, (list, tuple)) and any(isinstance(entry, (Pair, Judged)) for entry in pairs)):
        return _from_records(read_records(pairs), report)
    result: list[Pair | Judged] = []
    for entry in pairs:
        result += [entry] if isinstance(entry, (Pair, Judged)) else _from_records(read_records([entry]), report)
    return result


def _from_records(records: list[Any], report: Report) -> list[Pair | Judged]:
    judged = [record for record in records if is_judged(record)]
    pairs = [record for record in records if not is_judged(record)] if judged else records
    result: list[Pair | Judged] = list(preference_pairs(pairs, report=report)) if pairs else []
    return result + list(judged_examples(judged, report=report))


def check_records(config: PreferenceConfig, given: Sequence[Pair | Judged]) -> None:
    """check_kinds of records in memory."""
    judged = [example.where or "records" for example in given if isinstance(example, Judged)]
    ties = [pair.where or "records" for pair in given if isinstance(pair, Pair) and pair.tie]
    check_kinds(config, judged[0] if judged else "", ties[0] if ties else "", len(ties), len(given))


def check_kinds(config: PreferenceConfig, judged: str, tie: str, ties: int, count: int) -> None:
    """JpoError where the losses cannot learn from ties, or from responses without one to compare with. judged, tie:
    where the first of them stands, "" where there is none; ties, count: of ties, of records."""
    if judged and config.losses != ["kto"]:
        raise JpoError(
            f"{judged}: {{prompt, completion, label}} has no second response, and loss {config.loss} compares two; "
            "use loss kto"
        )
    deaf = [name for name in config.losses if "ties" not in LOSSES[name].reads]
    if ties and deaf:
        raise JpoError(
            f"{tie}: is a tie (one of {ties} in {count} records), and loss {deaf[0]} knows none; "
            "use loss dpo_rk or dpo_davidson, or build the pairs without --keep-ties"
        )
