"""What the model answers while it is trained, and how often a judge prefers that: --eval-samples, --eval-judge.

At each evaluation the first instructions of the evaluation data are answered; the rows stand in OUTPUT/samples.jsonl:
{step, instruction, output, temperature} and, with a judge, `other` (what the output is compared with) and `feedback`
(0: the output is better, 1: `other`, 2: equal, null: no verdict). The judge is asked as by jpo feedback, twice with the
order swapped; its share, (wins + ties / 2) / verdicts, is the metric eval_win_rate. All ranks draw, the first does the
rest.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jpo.data.encoding import Encoder
from jpo.data.readers import iter_records
from jpo.data.records import Example, Judged, Pair, good_texts
from jpo.data.texts import Text, plain, text_key
from jpo.disk import naming_faults, write_atomic
from jpo.errors import JpoError
from jpo.parallel.team import Team
from jpo.train.callbacks import Callback, Row, Run
from jpo.train.checkpoint import rows_while
from jpo.train.config import TrainingConfig
from jpo.train.drawing import drawn

FILE = "samples.jsonl"
_JOURNAL = "samples.journal.sqlite"


@dataclass(frozen=True)
class Asked:
    """An instruction to answer, the prompt that asks it, and the response that the data prefer."""

    instruction: Text
    prompt: str
    response: Text


def reread(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluation data that can be read more than once: an iterator's records are listed."""
    return {name: list(data) if isinstance(data, Iterator) else data for name, data in sets.items()}


def asked_of(
    sets: Mapping[str, Any], convert: Callable[[Any], Sequence[Pair | Judged | Example]], encoder: Encoder, count: int
) -> list[Asked]:
    """The first `count` different instructions of evaluation data that have a good response; read is no more than
    that. convert: an entry of the data -> its records."""
    found: dict[str, Asked] = {}
    records = (record for data in sets.values() for entry in _entries(data) for record in convert(entry))
    for record in records if count else ():
        if isinstance(record, Judged) and not record.label:
            continue
        instruction, response = good_texts(record)
        found.setdefault(text_key(instruction), Asked(instruction, encoder.prompt_text(instruction), response))
        if len(found) == count:
            break
    return list(found.values())


def _entries(data: Any) -> Iterator[Any]:
    for item in data if isinstance(data, (list, tuple)) else [data]:
        if isinstance(item, (Pair, Judged, Example)):
            yield item
        else:
            yield from iter_records([item] if isinstance(item, Mapping) else item)


class Samples(Callback):
    """Answers `asked` at each evaluation of a run of `lm`. JpoError, before the first step, for a judge that cannot
    be."""

    def __init__(self, lm: Any, asked: Sequence[Asked], config: TrainingConfig, team: Callable[[], Team] = Team):
        self.lm, self.asked, self.config, self._team = lm, asked, config, team
        self.path = os.path.join(config.output, FILE) if config.output else None
        self.judge: Any = None
        self._other: list[str] | None = None  # what the outputs are compared with
        self._known = False  # the file holds nothing of a later step, or of another run
        if not asked:
            raise JpoError("eval_samples: needs evaluation data (--eval-data) to take instructions from")
        if config.eval_judge is not None:
            from jpo.feedback.judges import make_judge

            self.judge = make_judge(
                config.eval_judge, base_url=config.eval_judge_base_url, model=config.eval_judge_model
            )

    def measure(self, run: Run) -> Mapping[str, float]:
        """Draws and writes the samples of this step; {"eval_win_rate": ...} with a judge that gave a verdict."""
        if not self._known:
            self._open(run.step)
        outputs = self._answers()
        rows: list[Row] = [
            {
                "step": run.step,
                "instruction": plain(asked.instruction),
                "output": output,
                "temperature": self.config.eval_temperature,
            }
            for asked, output in zip(self.asked, outputs, strict=True)
        ]
        metrics: dict[str, float] = {}
        if self.judge is not None:
            metrics = self._judged(rows, run.step)
        if self.path is not None:
            with naming_faults(self.path, "mend this and go on with --resume"):
                with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        run.samples = rows
        return metrics

    def _answers(self, reference: bool = False) -> list[str]:
        return drawn(
            self.lm,
            self._team(),
            [asked.prompt for asked in self.asked],
            reference,
            temperature=self.config.eval_temperature,
            max_new_tokens=self.config.eval_max_new_tokens,
            seed=self.config.seed,
        )

    def _judged(self, rows: list[Row], step: int) -> dict[str, float]:
        """Adds `other` and `feedback` to the rows; equal texts are a tie and blank ones lose, both unasked."""
        others = self._others(rows, step)
        asked = []
        for row, other in zip(rows, others, strict=True):
            output = str(row["output"])
            row["other"] = other
            if output.strip() == other.strip():
                row["feedback"] = 2
            elif not (output.strip() and other.strip()):
                row["feedback"] = 0 if output.strip() else 1
            else:
                asked.append(row)
        if asked:
            self._ask(asked)
        given = [row["feedback"] for row in rows if row["feedback"] is not None]
        if not given:
            return {}
        return {"eval_win_rate": sum({0: 1.0, 1: 0.0, 2: 0.5}[feedback] for feedback in given) / len(given)}

    def _ask(self, rows: list[Row]) -> None:
        from jpo.feedback.acquire import acquire
        from jpo.feedback.judges import slots

        candidates = [
            {"instruction": row["instruction"], "response_0": row["output"], "response_1": row["other"]} for row in rows
        ]
        with tempfile.TemporaryDirectory() as folder:
            journal = os.path.join(self.config.output or folder, _JOURNAL)
            judged = os.path.join(folder, "judged.jsonl")
            concurrency = slots(str(self.config.eval_judge))
            summary = acquire(candidates, judged, self.judge, journal=journal, concurrency=concurrency)
            with open(judged, encoding="utf-8") as file:
                for row, line in zip(rows, file, strict=True):
                    row["feedback"] = json.loads(line)["feedback"]
        if summary.feedback["failed"]:
            print(
                f"warning: {summary.feedback['failed']} of {len(rows)} samples got no verdict: {summary.failure}",
                file=sys.stderr,
                flush=True,
            )

    def _others(self, rows: list[Row], step: int) -> list[str]:
        """The responses of the data, or the answers of the reference: of the model without its adapter, of a model
        trained whole its own before the first step."""
        if self._other is None:
            if self.config.eval_against == "chosen":
                self._other = [_text(asked.response) for asked in self.asked]
            elif not self.lm.full:
                self._other = self._answers(reference=True)
            elif step == 0:
                self._other = [str(row["output"]) for row in rows]
            else:
                raise JpoError(
                    f"eval_judge: {self.path or 'this run'} holds no samples of the model before training to compare "
                    "with; give eval_against: chosen"
                )
        return self._other

    def _open(self, step: int) -> None:
        """Of a file that is there the rows of earlier steps stay where a run goes on, otherwise none."""
        self._known = True
        if self.path is None:
            return
        path = self.path if step else ""
        earlier = rows_while(path, lambda row: row["step"] < step and {"output", "instruction"} <= row.keys())
        kept = [{"output": row["output"], "instruction": row["instruction"], **row} for row in earlier]
        first = {json.dumps(row["instruction"]): row["output"] for row in kept if row["step"] == 0}
        keys = [json.dumps(plain(asked.instruction)) for asked in self.asked]
        if self.lm.full and self.config.eval_against == "reference" and first.keys() >= set(keys):
            self._other = [first[key] for key in keys]

        def write(part: str) -> None:
            with open(part, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)

        with naming_faults(self.path, "mend this and go on with --resume"):
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            write_atomic(self.path, write)


def _text(response: Text) -> str:
    """A response as one text; of a conversation its turns, one under the other."""
    return response if isinstance(response, str) else "\n\n".join(turn["content"] for turn in response)
