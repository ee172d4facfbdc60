"""AlpacaEval 2's files: outputs for it to judge, and its annotations read back. Knows its formats; runs nothing of it.

Outputs are a JSON array of {instruction, output, generator}. Annotations are a JSON array with output_1 (the
baseline's), output_2 (the model's), generator_1, generator_2 and preference: from 1 (the baseline) to 2 (the model),
1.5 or the older 0 a draw, null where the annotator failed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jpo.data.readers import read_records
from jpo.disk import write_text
from jpo.errors import DataError
from jpo.evaluate.alpaca_regression import Difficulty, alpaca_length_controlled
from jpo.evaluate.statistics import length_controlled


def alpaca_eval_outputs(generations: Iterable[Mapping[str, Any]], generator: str | None = None) -> list[dict[str, Any]]:
    """Generations {instruction, output, model, ...} in AlpacaEval's form, one an instruction.

    generator: the name given to the model (default: the records' model). DataError where an instruction has several
    outputs (temperatures, seeds, samples): AlpacaEval judges one; or where the records name several models.
    """
    found: dict[str, dict[str, Any]] = {}
    names = set()
    for index, record in enumerate(generations):
        where = getattr(record, "where", f"generations[{index}]")
        instruction, output = record.get("instruction"), record.get("output")
        if not isinstance(instruction, str) or not isinstance(output, str):
            raise DataError(f"{where}: expected texts under instruction and output, got {sorted(record)[:8]}")
        if instruction in found:
            raise DataError(
                f"{where}: a second output of one instruction; AlpacaEval judges one: give one temperature, seed and sample"
            )
        name = generator or str(record.get("model") or "model")
        names.add(name)
        found[instruction] = {"instruction": instruction, "output": output, "generator": name}
    if len(names) > 1:
        raise DataError(f"generations: expected one model, got {', '.join(sorted(names))}; write one file for each")
    if not found:
        raise DataError("generations: hold no outputs")
    return list(found.values())


def write_alpaca_eval_outputs(
    path: str | os.PathLike[str], generations: Iterable[Mapping[str, Any]], generator: str | None = None
) -> int:
    """Writes alpaca_eval_outputs to `path`, for `alpaca_eval --model_outputs PATH`; how many there are."""
    rows = alpaca_eval_outputs(generations, generator)
    write_text(os.fspath(path), json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return len(rows)


def read_annotations(path: str | os.PathLike[str], difficulty: Difficulty | None = None) -> dict[str, dict[str, Any]]:
    """model -> its figures out of AlpacaEval's annotations.json, win-rates from 0 to 1.

    win_rate is the mean of preference - 1, with standard_error; discrete_win_rate rounds each preference to a win, a
    loss or a draw first; wins, losses and draws count preferences above, below and at 1.5; failed counts nulls, which
    enter nothing. length_controlled: see jpo.evaluate.statistics.length_controlled, with an interval. alpaca_eval:
    AlpacaEval's own regression, in percent (jpo.evaluate.alpaca_regression), with the term of `difficulty` where it is
    given; an annotation's key `index`, else its place, is the instruction's number. DataError names the file and the
    annotation.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{name}: expected a JSON array of annotations, got {type(rows).__name__}")
    models: dict[str, list[Annotation]] = {}
    for place, row in enumerate(rows):
        model, values = _annotation(row, f"{name}: annotation {place}")
        found = models.setdefault(model, [])
        found.append(values if values.place is not None else values._replace(place=len(found)))
    return {model: figures(values, difficulty) for model, values in models.items()}


class Annotation(NamedTuple):
    """One judged output: preference - 1 (None: failed), its characters, the baseline's, its instruction's number."""

    score: float | None
    length: int
    baseline: int
    place: int | None = None


def _annotation(row: Any, where: str) -> tuple[str, Annotation]:
    """(model, its annotation)"""
    if not isinstance(row, dict) or "preference" not in row:
        raise DataError(f"{where}: expected an object with preference, output_1 and output_2, got {row!r:.80}")
    for key in ("output_1", "output_2"):
        if not isinstance(row.get(key), str):
            raise DataError(f"{where}: {key}: expected a text, got {row.get(key)!r:.60}")
    value, index = row["preference"], row.get("index")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
        raise DataError(f"{where}: index: expected a whole number, got {index!r:.60}")
    if value is None or (isinstance(value, float) and np.isnan(value)):
        score = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and (value == 0 or 1 <= value <= 2):
        score = 0.5 if value == 0 else float(value) - 1
    else:
        raise DataError(f"{where}: preference: expected a number from 1 to 2, 0 for a draw, or null; got {value!r:.60}")
    return str(row.get("generator_2", "model")), Annotation(score, len(row["output_2"]), len(row["output_1"]), index)


def figures(values: Sequence[Annotation], difficulty: Difficulty | None = None) -> dict[str, Any]:
    """What read_annotations says of one model."""
    scored = [value for value in values if value.score is not None]
    scores = np.array([value.score for value in scored], dtype=np.float64)
    n = len(scores)
    wins, losses, draws = (int(count.sum()) for count in (scores > 0.5, scores < 0.5, scores == 0.5))
    return {
        "win_rate": float(scores.mean()) if n else None,
        "standard_error": float(scores.std(ddof=1) / n**0.5) if n > 1 else None,
        "discrete_win_rate": (wins + draws / 2) / n if n else None,
        "length_controlled": length_controlled(
            scores.tolist(), [value.length for value in scored], [value.baseline for value in scored]
        ),
        "alpaca_eval": alpaca_length_controlled(
            [value.score for value in values],
            [value.length for value in values],
            [value.baseline for value in values],
            [at if value.place is None else value.place for at, value in enumerate(values)],
            difficulty,
        ),
        "wins": wins,
        "losses": losses,
        "draws": draws,
        "total": n,
        "failed": len(values) - n,
        "average_length": sum(value.length for value in values) / len(values),
        "longer_than_baseline": sum(value.length > value.baseline for value in scored) / n if n else None,
    }


# --- an evaluation set and the annotations of our own judges ------------------------------------------------------


def read_evaluation_set(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The baseline's outputs, [{instruction, output, generator, dataset?}], as records with gold_response: their places
    are the instructions' numbers. DataError names the file and the record."""
    rows = []
    for place, record in enumerate(read_records(path)):
        where = getattr(record, "where", f"{os.fspath(path)}[{place}]")
        instruction, output = record.get("instruction"), record.get("output", record.get("gold_response"))
        for key, value in (("instruction", instruction), ("output", output)):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{where}: {key}: expected a text, got {value!r:.60}")
        generator = str(record.get("generator") or "baseline")
        row = {"id": place, "instruction": instruction, "gold_response": output, "generator": generator}
        rows.append(row)
    return rows


def annotated(judged: Iterable[Mapping[str, Any]], generators: Mapping[str, str]) -> list[dict[str, Any]]:
    """Judged outputs (jpo.evaluate.judging) in AlpacaEval's form: preference 2 where the output won, 1 where the
    baseline did, 1.5 for neither, null where the verdict failed. generators: id -> the baseline's name."""
    return [
        {
            "index": int(row["id"]),
            "instruction": row["instruction"],
            "output_1": row["response_1"],
            "generator_1": generators[str(row["id"])],
            "output_2": row["response_0"],
            "generator_2": str(row["model"]),
            "annotator": row["annotator"],
            "preference": {0: 2.0, 1: 1.0, 2: 1.5}.get(row["feedback"]),
        }
        for row in judged
    ]
