"""The records that a study starts from: examples for the SFT policy, instructions for the feedback, test items. The
embedded world makes them; elsewhere they are seeded choices of given files.

Knows records and seeds; never models, judges or a study's files.
"""

from __future__ import annotations

from typing import Any

from jpo.data.batches import permutation
from jpo.data.readers import read_records
from jpo.data.records import items_to_test, sft_examples
from jpo.data.texts import plain
from jpo.evaluate.items import items_of
from jpo.study import given, world
from jpo.study.config import StudyConfig

POOL = 4  # candidates for each decided pair that is wanted, at most
_SFT, CANDIDATES, _TEST, TEXTS, JOINT = range(5)  # streams of the world's texts and of choices
Data = tuple[list[Any], list[Any], list[Any]]  # examples, instructions, test items


def world_data(c: StudyConfig) -> Data:
    """Instructions and gold responses of the embedded world, no instruction in two of the three."""
    pool = c.candidates_size or POOL * (c.conditional_size or 0)
    sizes = {_TEST: c.test_size, CANDIDATES: pool, _SFT: c.sft_size}
    seen: list[str] = []
    made: dict[int, list[dict[str, Any]]] = {}
    for stream, size in sizes.items():
        texts = world.instructions(size, c.seed, stream, seen)
        seen += texts
        gold = world.responses(texts, c.seed, stream)
        key = "gold_response" if stream == _TEST else "response"
        made[stream] = [
            {"id": place, "instruction": text, key: answer}
            for place, (text, answer) in enumerate(zip(texts, gold, strict=True))
        ]
    texts_only = [{"id": row["id"], "instruction": row["instruction"]} for row in made[CANDIDATES]]
    return made[_SFT], texts_only, made[_TEST]


def given_data(c: StudyConfig) -> Data:
    """Seeded choices of the files' records; a gold_response stands in for a response where that is missing."""
    sft: list[dict[str, Any]] = []
    if c.sft_data:
        rows = [{**r, "response": r.get("response", r.get("gold_response"))} for r in read_records(c.sft_data)]
        found = sft_examples(rows, c.sft_data)
        sft = [{"instruction": plain(e.instruction), "response": plain(e.response)} for e in found]
    assert c.test_data
    golds = read_records(c.test_data)
    usable = {(str(plain(t.instruction)), str(plain(t.gold_response))) for t in items_to_test(golds, c.test_data)}
    test = [
        {"id": item.id, "instruction": plain(item.instruction), "gold_response": item.record["gold_response"]}
        for item in items_of(golds)
        if (str(plain(item.instruction)), str(item.record.get("gold_response"))) in usable
    ]
    return some(sft, c.sft_size, c.seed, _SFT), _pool(c), some(test, c.test_size, c.seed, _TEST)


def _pool(c: StudyConfig) -> list[Any]:
    """The instructions that candidates may be sampled for: in the file's order where each of them may get some,
    else in a seeded one, whose beginning is sampled. Of given pairs, theirs."""
    if c.conditional_pairs:
        return given.instructions_of(given.pairs_of(c.conditional_pairs, joint=False))
    source = c.instructions or c.sft_data
    assert source
    items = items_of(read_records(source))
    texts = [{"id": item.id, "instruction": plain(item.instruction)} for item in items]
    texts = some(texts, c.candidates_size or len(texts), c.seed, CANDIDATES)
    if len(texts) <= (c.conditional_size or 0):
        return texts
    return [texts[int(at)] for at in permutation(len(texts), c.seed, CANDIDATES, 1)]


def some(rows: list[Any], size: int, seed: int, stream: int) -> list[Any]:
    """Of more rows than `size`, a seeded choice in their own order."""
    if len(rows) <= size:
        return rows
    return [rows[int(at)] for at in sorted(permutation(len(rows), seed, stream)[:size])]
