"""Generations set beside gold responses and put before a judge. Outputs and test records meet by id and instruction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jpo.data.readers import Record, iter_records, write_records
from jpo.data.records import instruction_of, items_to_test
from jpo.data.texts import plain, text_key
from jpo.errors import DataError
from jpo.evaluate.items import Item, items_of
from jpo.evaluate.released import Known, generation, known_feedback, untemplated
from jpo.feedback.acquire import Summary, acquire
from jpo.feedback.judges import Judge
from jpo.parallel.shards import Shard

_TRAVEL = ("model", "temperature", "seed", "training_seed", "sample")


def beside_gold(
    generations: Iterable[Mapping[str, Any]], gold: Iterable[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """(candidates, missing): {id, instruction, response_0: the output, response_1: gold, model, temperature, seed,
    ...}.

    Joined by id, and the instructions must agree; without an id, by the instruction alone. missing: test items of which
    some (model, temperature, seed, sample) has no output. DataError for an output whose id or instruction gold lacks.
    """
    items = {item.key: item for item in items_of(gold, "gold")}
    golds = {key: _gold(item) for key, item in items.items()}
    by_text: dict[str, list[Item]] = {}
    for item in items.values():
        by_text.setdefault(text_key(item.instruction), []).append(item)
    rows: list[dict[str, Any]] = []
    answered: dict[tuple[Any, ...], set[str]] = {}
    for index, given in enumerate(generations):
        record = generation(given)
        where = record.where if isinstance(record, Record) else f"generations[{index}]"
        item = _partner(record, where, items, by_text)
        if not isinstance(record.get("output"), str):
            raise DataError(f"{where}: output: expected a text, got {record.get('output')!r:.60}")
        row = {"id": item.id, "instruction": plain(item.instruction), "response_0": record["output"]}
        row |= {"response_1": golds[item.key], "model": "model", "temperature": 1.0, "seed": 0, "sample": 0}
        row |= {key: record[key] for key in _TRAVEL if record.get(key) is not None}
        answered.setdefault(tuple(row.get(key) for key in _TRAVEL), set()).add(item.key)
        rows.append(row)
    return rows, len(answered) * len(items) - sum(map(len, answered.values()))


def _gold(item: Item) -> Any:
    found = items_to_test([item.record], item.where)
    if not found:
        raise DataError(f"{item.where}: gold_response is blank: there is nothing to compare with")
    return plain(found[0].gold_response)


def _partner(
    record: Mapping[str, Any], where: str, items: Mapping[str, Item], by_text: Mapping[str, list[Item]]
) -> Item:
    text = text_key(instruction_of(record, where))
    identity = record.get("id", record.get("instruction_id"))
    alike = by_text.get(text) or by_text.get(untemplated(text), [])
    if identity is None:
        if len(alike) == 1:
            return alike[0]
        raise DataError(
            f"{where}: without an id, its instruction must stand once in gold; it stands {len(alike)} times"
        )
    item = items.get(str(identity))
    if item is None:
        raise DataError(f"{where}: the id {identity!r} is not among the {len(items)} of gold; is it another test set?")
    if text_key(item.instruction) not in (text, untemplated(text)):
        raise DataError(f"{where}: the id {identity!r} has another instruction than in gold, at {item.where}")
    return item


def judge_generations(
    generations: Any,
    gold: Any,
    judge: Judge,
    output: str | os.PathLike[str],
    *,
    known: Known | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    shard: Shard | None = None,
    **options: Any,
) -> tuple[list[dict[str, Any]], Summary, int]:
    """(judged rows, what the judge was asked, missing outputs); the rows are written to `output` (JSONL) too.

    generations, gold: files or iterables of records, as jpo generate writes them and {instruction, gold_response, id?}.
    The judge compares each output with gold in both orders. A blank output loses unasked; what `known` (verdict caches,
    jpo.evaluate.released.read_known) says of a comparison is not asked again. options: those of
    jpo.feedback.acquire.acquire; its journal (default: output + ".journal.sqlite") lets a killed run go on. shard: only
    that part of the rows.
    """
    rows, missing = beside_gold(iter_records(generations), iter_records(gold))
    if shard is not None:
        rows = rows[slice(*shard.range(len(rows)))]
    blank = {"feedback": 1, "annotator": "blank output"}
    unasked = {_identity(row): row | blank for row in rows if not row["response_0"].strip()}
    for row in rows if known else ():
        feedback = known_feedback(row, known or {})
        if feedback is not None:
            unasked[_identity(row)] = row | {"feedback": feedback, "annotator": "verdict cache"}
    asked = [row for row in rows if _identity(row) not in unasked]
    summary = acquire(asked, output, judge, progress=progress, **options)
    verdicts = {_identity(row): dict(row) for row in iter_records(output)}
    if len(verdicts) < len(asked):
        raise DataError("generations: an output of one model, temperature, seed and sample stands twice; leave one out")
    judged = [verdicts.get(_identity(row)) or unasked[_identity(row)] for row in rows]
    if len(asked) < len(rows):
        write_records(output, judged)
    return judged, summary, missing


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return str(row["id"]), *(row.get(key) for key in _TRAVEL)
