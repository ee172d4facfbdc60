"""What a person has already, in the form of the stages that it stands for: pairs as decided verdicts, a policy's
template.

The authors' *_conditional_pref.jsonl and every other form of preference record fit as they are. Knows files and
records; never the order of stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from jpo.data.readers import read_records
from jpo.data.records import Pair, preference_pairs
from jpo.data.report import Report
from jpo.data.templates import DEFAULT, Template
from jpo.data.texts import plain
from jpo.errors import DataError
from jpo.formats.peft import read_adapter

_DECIDED = {"feedback": 0, "annotator": "given", "verdicts": ["A", "B"]}


def pairs_of(path: str, joint: bool) -> list[Pair]:
    """A file's preference pairs, which must be of the one kind: of different instructions (joint) or of one."""
    report = Report()
    pairs = preference_pairs(read_records(path), path, report)
    found = [pair for pair in pairs if pair.joint == joint]
    if len(found) < len(pairs):
        kind = "different instructions" if joint else "one instruction"
        raise DataError(
            f"{path}: {len(pairs) - len(found)} of {len(pairs)} pairs are not of {kind}; give joint pairs as joint_pairs, "
            "conditional ones as conditional_pairs"
        )
    if not found:
        raise DataError(f"{path}: holds no preference pair:\n{report}")
    return found


def instructions_of(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """The different instructions of conditional pairs, as records."""
    listed = dict.fromkeys(json.dumps(plain(pair.i_chosen), sort_keys=True) for pair in pairs)
    return [{"id": place, "instruction": json.loads(text)} for place, text in enumerate(listed)]


def as_conditional(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Conditional feedback that decided for the chosen response, which stands first."""
    return [
        {"instruction": plain(p.i_chosen), "response_0": plain(p.r_chosen), "response_1": plain(p.r_reject), **_DECIDED}
        for p in pairs
    ]


def as_joint(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Joint feedback that decided for the chosen item, without conditional labels: decided verdicts alone say nothing
    of how often one is decisive."""
    rows = []
    for pair in pairs:
        chosen = {"instruction_0": plain(pair.i_chosen), "response_0": plain(pair.r_chosen)}
        rejected = {"instruction_1": plain(pair.i_reject), "response_1": plain(pair.r_reject)}
        rows.append({**chosen, **rejected, **_DECIDED})
    return rows


def template_of(policy: str) -> str:
    """The name or text of the template that an adapter was trained with."""
    stored = read_adapter(policy)[0].extra.get("template")
    return Template.from_dict(stored).name if stored else DEFAULT
