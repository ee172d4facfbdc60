"""Agreement between annotators who judged the same content: human-human, human-model, model-model, conditional and
joint feedback apart, in percent and as Krippendorff's alpha; and of each annotator with the majority's vote. Knows
feedback records; never judges.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jpo.data.records import Candidate, candidates
from jpo.data.report import Report
from jpo.data.texts import text_key
from jpo.data.words import raw_words
from jpo.errors import DataError, MissingExtra

KINDS = ("human_human", "human_model", "model_model")
PROTOCOLS = ("conditional", "joint")
FEWEST_VOTES = 3  # on one content, for a majority that is more than what two agree on
_DRAWS = 1000  # of the bootstrap of a kind; an annotator pair's takes a fifth, because there are many
Unit = tuple[tuple[str, str], tuple[str, str]]  # the two items that are compared, in an order of their own


def majority(verdicts: Iterable[int]) -> int | None:
    """What most of several verdicts (0, 1, 2: equal) on one content say; where two values have equally many votes the
    annotators prefer neither: 2. None without a verdict."""
    counts = Counter(verdicts).most_common()
    if not counts:
        return None
    return counts[0][0] if len(counts) == 1 or counts[0][1] > counts[1][1] else 2


def annotator_kind(name: str, record: Mapping[str, Any] | None = None, humans: Sequence[str] = ()) -> str:
    """ "human" or "model": by the record's key annotator_kind, by `humans` (names), else human where the name is
    "human" or begins with "human" and one of : _ - / or a space."""
    stated = (record or {}).get("annotator_kind")
    if stated is not None:
        if stated not in ("human", "model"):
            where = getattr(record, "where", "record")
            raise DataError(f"{where}: annotator_kind: expected 'human' or 'model', got {stated!r}")
        return str(stated)
    lowered = name.lower()
    human = lowered == "human" or (lowered.startswith("human") and lowered[5] in ":_-/ ")
    return "human" if name in humans or human else "model"


def _unit(candidate: Candidate) -> tuple[Unit, int | None]:
    """What was compared, whichever item stood first, and the verdict in that order."""
    items = [
        (text_key(candidate.instruction_0), text_key(candidate.response_0)),
        (text_key(candidate.instruction_1), text_key(candidate.response_1)),
    ]
    verdict = candidate.feedback
    if items[1] < items[0]:
        items.reverse()
        verdict = 1 - verdict if verdict in (0, 1) else verdict
    return (items[0], items[1]), verdict


def agreement(
    records: Iterable[Mapping[str, Any]], humans: Sequence[str] = (), seed: int = 0, report: Report | None = None
) -> dict[str, Any]:
    """{annotators, conditional, joint}: how far annotators agree on content that they both judged.

    records: feedback of several annotators, {..., feedback, annotator, annotator_kind?}; the same comparison with its
    sides exchanged counts as the same. Failed verdicts (null) count for nothing; of two verdicts of one annotator on
    the same content the first counts. `annotators` holds each one's kind and numbers of verdicts; under each protocol
    stand the kinds of pairs (human_human, human_model, model_model) and `pairs`, every two annotators:
    {percent, percent_low, percent_high, alpha, alpha_low, alpha_high, n}, n being comparisons of two verdicts. Alpha is
    Krippendorff's, nominal, over 0, 1 and 2 (equal), with every two verdicts on the same content as a unit; None where
    only one value occurs. Intervals: 95 %, bootstrap over contents. Under `majority` stands what _majorities says.
    MissingExtra without the package krippendorff.
    """
    report = Report() if report is None else report
    kinds: dict[str, str] = {}
    verdicts: dict[str, dict[str, dict[Unit, int]]] = {protocol: {} for protocol in PROTOCOLS}
    for record in records:
        for candidate in candidates([record], report=report):
            unit, verdict = _unit(candidate)
            if verdict is None:
                continue
            name = str(record.get("annotator") or "unnamed")
            kind = annotator_kind(name, record, humans)
            if kinds.setdefault(name, kind) != kind:
                raise DataError(f"{candidate.where}: annotator {name!r} is a human here and a model elsewhere")
            protocol = "conditional" if unit[0][0] == unit[1][0] else "joint"
            verdicts[protocol].setdefault(name, {}).setdefault(unit, verdict)
    named = {
        name: {"kind": kind, **{protocol: len(verdicts[protocol].get(name, {})) for protocol in PROTOCOLS}}
        for name, kind in sorted(kinds.items())
    }
    return {"annotators": named, **{protocol: _protocol(found, kinds, seed) for protocol, found in verdicts.items()}}


def _protocol(verdicts: Mapping[str, Mapping[Unit, int]], kinds: Mapping[str, str], seed: int) -> dict[str, Any]:
    groups: dict[str, list[tuple[Unit, int, int]]] = {kind: [] for kind in KINDS}
    pairs = []
    for a, b in itertools.combinations(sorted(verdicts), 2):
        shared = [(unit, verdicts[a][unit], verdicts[b][unit]) for unit in verdicts[a] if unit in verdicts[b]]
        if shared:
            kind = "_".join(sorted((kinds[a], kinds[b])))
            groups[kind] += shared
            pairs.append({"annotators": [a, b], "kind": kind, **_figures(shared, seed, _DRAWS // 5)})
    by_kind = {kind: _figures(found, seed, _DRAWS) for kind, found in groups.items() if found}
    return {**by_kind, "pairs": pairs, "majority": _majorities(verdicts, kinds, seed)}


def _majorities(verdicts: Mapping[str, Mapping[Unit, int]], kinds: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Of all annotators, and of the humans alone where enough of them voted: {contents, tied, annotators}. contents:
    those with FEWEST_VOTES votes; tied: how many of them have no majority; annotators: each one's agreement with it, as
    for two annotators, and others_percent: with the majority of the others, which its own vote does not help to
    make."""
    found = {}
    for group, names in (("all", list(verdicts)), ("humans", [name for name in verdicts if kinds[name] == "human"])):
        votes: dict[Unit, dict[str, int]] = {}
        for name in names:
            for unit, verdict in verdicts[name].items():
                votes.setdefault(unit, {})[name] = verdict
        votes = {unit: own for unit, own in votes.items() if len(own) >= FEWEST_VOTES}
        if not votes or (group == "humans" and len(names) == len(verdicts)):
            continue
        whole = {unit: majority(own.values()) for unit, own in votes.items()}
        tied = sum(_undecided(own.values()) for own in votes.values())
        rows = {}
        for name in sorted(verdicts):
            shared = [unit for unit in votes if unit in verdicts[name]]
            if not shared:
                continue
            rows[name] = _figures([(u, verdicts[name][u], whole[u] or 0) for u in shared], seed, _DRAWS // 5)
            others = [majority(v for who, v in votes[u].items() if who != name) == verdicts[name][u] for u in shared]
            rows[name]["others_percent"] = 100 * sum(others) / len(others)
        found[group] = {"contents": len(votes), "tied": tied, "annotators": rows}
    return found


def _undecided(verdicts: Iterable[int]) -> bool:
    counts = Counter(verdicts).most_common()
    return len(counts) > 1 and counts[0][1] == counts[1][1]


def _figures(compared: Sequence[tuple[Unit, int, int]], seed: int, draws: int) -> dict[str, Any]:
    numbers: dict[Unit, int] = {}
    owner = np.array([numbers.setdefault(unit, len(numbers)) for unit, _, _ in compared])
    counts = np.zeros((len(compared), 3), dtype=np.int64)  # (n, values): how often each value was given
    for row, (_, first, second) in enumerate(compared):
        counts[row, first] += 1
        counts[row, second] += 1
    agree = np.array([first == second for _, first, second in compared], dtype=np.float64)
    members = [np.flatnonzero(owner == number) for number in range(len(numbers))] if len(numbers) < len(owner) else None
    percents, alphas = [], []
    for draw in range(draws):
        picks = (raw_words(len(numbers), seed, draw) % np.uint64(len(numbers))).astype(np.int64)
        rows = picks if members is None else np.concatenate([members[pick] for pick in picks])
        percents.append(100 * agree[rows].mean())
        alphas.append(_alpha(counts[rows]))
    known = [alpha for alpha in alphas if alpha is not None]
    low, high = np.percentile(percents, [2.5, 97.5])
    alpha_low, alpha_high = np.percentile(known, [2.5, 97.5]) if known else (None, None)
    return {
        "percent": float(100 * agree.mean()),
        "percent_low": float(low),
        "percent_high": float(high),
        "alpha": _alpha(counts),
        "alpha_low": None if alpha_low is None else float(alpha_low),
        "alpha_high": None if alpha_high is None else float(alpha_high),
        "n": len(compared),
    }


def _alpha(counts: np.ndarray[Any, Any]) -> float | None:
    """Krippendorff's alpha of (units, values) counts; None where one value alone occurs: chance would agree too."""
    try:
        import krippendorff
    except ImportError:
        raise MissingExtra(
            "agreement between annotators needs the krippendorff package: pip install 'jpo[evaluate]'"
        ) from None
    if (counts.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def format_agreement(found: Mapping[str, Any]) -> str:
    """`agreement`'s result as lines to read; empty where no two annotators judged the same content."""
    lines = []
    for protocol in PROTOCOLS:
        for kind in KINDS:
            if kind not in found[protocol]:
                continue
            row = found[protocol][kind]
            alpha = "alpha -" if row["alpha"] is None else f"alpha {row['alpha']:.3f}"
            if row["alpha_low"] is not None:
                alpha += f" ({row['alpha_low']:.3f} to {row['alpha_high']:.3f})"
            lines.append(
                f"agreement, {protocol}, {kind.replace('_', '-')}: {row['percent']:.1f} % ({row['percent_low']:.1f} to "
                f"{row['percent_high']:.1f}), {alpha}, n = {row['n']}"
            )
        for group, rows in found[protocol]["majority"].items():
            of = "" if group == "all" else " of the humans"
            each = "; ".join(
                f"{name} {row['percent']:.1f} % ({row['percent_low']:.1f} to {row['percent_high']:.1f}; of the others "
                f"{row['others_percent']:.1f} %), n = {row['n']}"
                for name, row in rows["annotators"].items()
            )
            lines.append(
                f"agreement with the majority{of}, {protocol}: {each}; tied {rows['tied']} of {rows['contents']}"
            )
    return "\n".join(lines)
