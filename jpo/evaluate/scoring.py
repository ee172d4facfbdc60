"""Log-likelihoods of records under a model: pairs with margins, examples with perplexity.

Knows records, tokens and sums; never losses or judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jpo.data.encoding import Encoded, Encoder
from jpo.data.readers import Record
from jpo.data.records import Example, Pair, preference_pairs, sft_examples
from jpo.data.report import Report
from jpo.errors import DataError, JpoError
from jpo.parallel.shards import Shard

SCOPES = ("joint", "response")
_BLOCK = 64  # sequences between two rows given back
Ids = tuple[Sequence[int], Sequence[int]]
Row = dict[str, Any]


def records_of(records: Sequence[Mapping[str, Any]], report: Report) -> list[Pair] | list[Example]:
    """The records as pairs where they hold two responses to weigh, else as examples; DataError where they are
    neither."""
    if records and ({"i_chosen", "chosen"} & set(records[0])):
        return preference_pairs(records, report=report)
    try:
        return sft_examples(records, report=report)
    except DataError as error:
        raise DataError(f"{error}; jpo score reads preference pairs and {{instruction, response}} examples") from None


def check_settings(scope: str, beta: float) -> None:
    """JpoError where `score` would refuse one of them."""
    if scope not in SCOPES:
        raise JpoError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
    if not 0 < beta < float("inf"):
        raise JpoError(f"beta: expected a number above 0, got {beta!r}")


def score(
    lm: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    encoder: Encoder,
    scope: str = "joint",
    beta: float = 0.1,
    report: Report | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    shard: Shard | None = None,
) -> Iterator[Row]:
    """A row for each record that fits, in order; `record` is its place in `records`. Of a shard, its run of blocks
    alone: what is computed together does not depend on the number of shards.

    Pairs: logps/chosen, logps/rejected (sums over the tokens of `scope`: "joint" all but a sequence's first, "response"
    the response and EOS), tokens/chosen, tokens/rejected and, where the model carries an adapter, ref_logps/* of the
    model without it and rewards/{chosen,rejected,margins} = beta (log p - log p_ref); without one, `margin` is the
    difference of the log-likelihoods. Examples: logps, tokens, perplexity = exp(-logps / tokens), and ref_logps,
    ref_perplexity.
    """
    check_settings(scope, beta)
    report = Report() if report is None else report
    given = records_of(records, report)
    pairs = bool(given) and isinstance(given[0], Pair)
    encoded = _encoded(given, encoder)
    places = {r.where if isinstance(r, Record) else f"records[{place}]": place for place, r in enumerate(records)}
    adapted = lm.lora is not None
    step = max(1, _BLOCK // (2 if pairs else 1))
    starts = range(0, len(encoded), step)
    for start in starts if shard is None else starts[slice(*shard.range(len(starts)))]:
        block = encoded[start : start + step]
        ids: list[Ids] = [(s.prompt_ids, s.response_ids) for _, sequences in block for s in sequences]
        policy = lm.sequence_logps_ids(ids, scope=scope)
        reference = lm.sequence_logps_ids(ids, scope=scope, adapter=False) if adapted else [None] * len(ids)
        counts = [scored_tokens(prompt, response, scope) for prompt, response in ids]
        values = list(zip(policy, reference, counts, strict=True))
        for place, (number, _) in enumerate(block):
            row = _pair(values[2 * place], values[2 * place + 1], beta) if pairs else _example(*values[place])
            yield {"record": places[given[number].where]} | row
        if progress is not None:
            progress(min(start + step, len(encoded)), len(encoded))


def _encoded(given: list[Pair] | list[Example], encoder: Encoder) -> list[tuple[int, list[Encoded]]]:
    """(place in `given`, its sequences) of what fits into the encoder's lengths."""
    if given and isinstance(given[0], Pair):
        return [(pair.index, list(pair.sequences)) for pair in encoder.pairs(given)]  # type: ignore[arg-type]
    fits = [place for place, e in enumerate(given) if not encoder.encode(*_texts(e)).too_long]
    return [(place, [found]) for place, found in zip(fits, encoder.examples(given), strict=True)]  # type: ignore[arg-type]


def _texts(example: Any) -> tuple[Any, Any]:
    return example.instruction, example.response


def scored_tokens(prompt: Sequence[int], response: Sequence[int], scope: str) -> int:
    """How many tokens of a sequence `scope` scores."""
    return len(response) - (not prompt) + (max(len(prompt) - 1, 0) if scope == "joint" else 0)


def _perplexity(logp: float, count: int) -> float:
    """exp(-logp / count); infinity where that is beyond a float's reach."""
    return math.exp(-logp / count) if -logp / count < 709 else math.inf


def _pair(chosen: tuple[Any, Any, int], rejected: tuple[Any, Any, int], beta: float) -> Row:
    row: Row = {}
    for name, (logp, _, count) in (("chosen", chosen), ("rejected", rejected)):
        row |= {f"logps/{name}": float(logp), f"tokens/{name}": count}
    if chosen[1] is None:
        return row | {"margin": row["logps/chosen"] - row["logps/rejected"]}
    for name, (logp, reference, _) in (("chosen", chosen), ("rejected", rejected)):
        row |= {f"ref_logps/{name}": float(reference), f"rewards/{name}": beta * float(logp - reference)}
    return row | {"rewards/margins": row["rewards/chosen"] - row["rewards/rejected"]}


def _example(logp: Any, reference: Any, count: int) -> Row:
    row: Row = {"logps": float(logp), "tokens": count, "perplexity": _perplexity(float(logp), count)}
    if reference is not None:
        row |= {"ref_logps": float(reference), "ref_perplexity": _perplexity(float(reference), count)}
    return row


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Figures over all rows: of pairs the accuracy and the mean margin; the perplexity over all scored tokens."""
    if not rows:
        raise DataError("no record is left to score")
    result: dict[str, float] = {"records": len(rows)}
    sides = ("/chosen", "/rejected") if "logps/chosen" in rows[0] else ("",)
    if "/chosen" in sides:
        margins = [float(row["rewards/margins" if "rewards/margins" in row else "margin"]) for row in rows]
        result["accuracy"] = sum(margin > 0 for margin in margins) / len(rows)
        result["mean margin"] = sum(margins) / len(rows)
    for side in sides:
        tokens = sum(row[f"tokens{side}"] for row in rows)
        for prefix in ("", "ref_"):
            if f"{prefix}logps{side}" in rows[0]:
                total = sum(row[f"{prefix}logps{side}"] for row in rows)
                result[f"{prefix}perplexity{side}"] = _perplexity(total, tokens)
    return result
