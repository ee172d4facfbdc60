"""AlpacaEval 2's files: outputs for it to judge, and its annotations read back. Knows its formats; runs nothing of it.

Outputs are a JSON array of {instruction, output, generator}. Annotations are a JSON array with output_1 (the baseline's),
output_2 (the model's), generator_1, generator_2 and preference: from 1 (the baseline) to 2 (the model), 1.5 or the
older 0 a draw, null where the annotator failed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jpo.errors import DataError
from jpo.evaluate.statistics import length_controlled
from jpo.formats.files import write_text


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


def read_annotations(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """model -> its figures out of AlpacaEval's annotations.json, win-rates from 0 to 1.

    win_rate is the mean of preference - 1, with standard_error; discrete_win_rate rounds each preference to a win, a loss
    or a draw first; wins, losses and draws count preferences above, below and at 1.5; failed counts nulls, which enter
    nothing. length_controlled: see jpo.evaluate.statistics.length_controlled, not AlpacaEval's own model, which also
    knows how difficult its 805 instructions are. DataError names the file and the annotation.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{name}: expected a JSON array of annotations, got {type(rows).__name__}")
    models: dict[str, list[tuple[float | None, int, int]]] = {}
    for index, row in enumerate(rows):
        model, values = _annotation(row, f"{name}: annotation {index}")
        models.setdefault(model, []).append(values)
    return {model: _figures(values) for model, values in models.items()}


def _annotation(row: Any, where: str) -> tuple[str, tuple[float | None, int, int]]:
    """(model, (preference - 1, or None; characters of its output; of the baseline's))"""
    if not isinstance(row, dict) or "preference" not in row:
        raise DataError(f"{where}: expected an object with preference, output_1 and output_2, got {row!r:.80}")
    for key in ("output_1", "output_2"):
        if not isinstance(row.get(key), str):
            raise DataError(f"{where}: {key}: expected a text, got {row.get(key)!r:.60}")
    value = row["preference"]
    if value is None or (isinstance(value, float) and np.isnan(value)):
        score = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and (value == 0 or 1 <= value <= 2):
        score = 0.5 if value == 0 else float(value) - 1
    else:
        raise DataError(f"{where}: preference: expected a number from 1 to 2, 0 for a draw, or null; got {value!r:.60}")
    return str(row.get("generator_2", "model")), (score, len(row["output_2"]), len(row["output_1"]))


def _figures(values: list[tuple[float | None, int, int]]) -> dict[str, Any]:
    scored = [(score, own, base) for score, own, base in values if score is not None]
    scores = np.array([score for score, _, _ in scored], dtype=np.float64)
    n = len(scores)
    wins, losses, draws = (int(count.sum()) for count in (scores > 0.5, scores < 0.5, scores == 0.5))
    return {
        "win_rate": float(scores.mean()) if n else None,
        "standard_error": float(scores.std(ddof=1) / n**0.5) if n > 1 else None,
        "discrete_win_rate": (wins + draws / 2) / n if n else None,
        "length_controlled": length_controlled(
            scores.tolist(), [own for _, own, _ in scored], [base for _, _, base in scored]
        ),
        "wins": wins,
        "losses": losses,
        "draws": draws,
        "total": n,
        "failed": len(values) - n,
        "average_length": sum(own for _, own, _ in values) / len(values),
        "longer_than_baseline": sum(own > base for _, own, base in scored) / n if n else None,
    }
