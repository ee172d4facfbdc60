"""The files that the paper's authors released, as they are: templated outputs and caches of verdicts, in and out.

Outputs are JSON Lines of {instruction: the prompt with its template, outputs}; the file's name ends in its temperature.
A cache is JSON, {model: {"instruction<SEP>...gold<SEP>...output": "model" | "gold" | "equal"}}, its instructions
templated likewise. Knows texts; never judges.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jpo.data.readers import Record
from jpo.data.templates import TEXTS
from jpo.disk import write_text
from jpo.errors import DataError
from jpo.evaluate.winrate import SEPARATOR, read_cache

FEEDBACK = {"model": 0, "gold": 1, "equal": 2}  # a cache's verdicts as feedback on (output, gold)
Known = Mapping[tuple[str, str, str], int]
_TEMPERATURE = re.compile(r"(?P<model>.+)_(?P<temperature>\d+(?:\.\d+)?)\.jsonl?")


def untemplated(text: str) -> str:
    """The instruction within a prompt of one of our text templates, the longest that fits; the text itself where none
    does."""
    for name in sorted(TEXTS, key=lambda name: -len(TEXTS[name])):
        before, _, rest = TEXTS[name].partition("{instruction}")
        after = rest.partition("{response}")[0].rstrip(" ")
        if before and text.startswith(before) and text.rstrip(" ").endswith(after):
            return text[len(before) : len(text.rstrip(" ")) - len(after)]
    return text


def generation(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line of the authors' outputs as one of jpo generate, model and temperature out of the file's name; any other
    record as it is."""
    if "outputs" not in record or "output" in record:
        return record
    own = {**record, "output": record["outputs"]}
    del own["outputs"]
    source = record.source if isinstance(record, Record) else ""
    found = _TEMPERATURE.fullmatch(os.path.basename(source))
    if found:
        own = {"model": found["model"], "temperature": float(found["temperature"]), **own}
    return Record(own, record.source, record.place) if isinstance(record, Record) else own


def read_known(paths: Iterable[str | os.PathLike[str]]) -> dict[tuple[str, str, str], int]:
    """(instruction, gold, output) -> feedback out of verdict caches; what two of them say of one comparison must
    agree."""
    found: dict[tuple[str, str, str], int] = {}
    for path in paths:
        for model, verdicts in read_cache(path).items():
            for (instruction, gold, output), verdict in verdicts.items():
                key = untemplated(instruction).strip(), gold.strip(), output.strip()
                if found.setdefault(key, FEEDBACK[verdict]) != FEEDBACK[verdict]:
                    raise DataError(
                        f"{os.fspath(path)}: model {model!r}: another verdict than before on the same comparison, of "
                        f"{key[0][:60]!r}; leave one of the two out"
                    )
    return found


def known_feedback(row: Mapping[str, Any], known: Known) -> int | None:
    """What the caches say of a row {instruction, response_0: the output, response_1: gold}; None where they say
    nothing."""
    texts = [row[key] for key in ("instruction", "response_1", "response_0")]
    if not all(isinstance(text, str) for text in texts):
        return None
    return known.get((texts[0].strip(), texts[1].strip(), texts[2].strip()))


def write_verdicts(path: str | os.PathLike[str], judged: Iterable[Mapping[str, Any]]) -> int:
    """Judged rows as a verdict cache, added to what the file holds already; how many verdicts it then has. Failed
    verdicts and conversations are left out; a model's temperatures and seeds share its name."""
    names = {value: name for name, value in FEEDBACK.items()}
    cache: dict[str, dict[str, str]] = {}
    if os.path.exists(path):
        for model, verdicts in read_cache(path).items():
            cache[model] = {SEPARATOR.join(key): verdict for key, verdict in verdicts.items()}
    for row in judged:
        texts = [row[key] for key in ("instruction", "response_1", "response_0")]
        if row["feedback"] is None or not all(isinstance(t, str) and SEPARATOR not in t for t in texts):
            continue
        cache.setdefault(str(row["model"]), {})[SEPARATOR.join(texts)] = names[int(row["feedback"])]
    write_text(os.fspath(path), json.dumps(cache, indent=1, ensure_ascii=False) + "\n")
    return sum(map(len, cache.values()))
