"""The forms that verdicts are written in (jpo.web.exchange writes them). Imports nothing, so that command lines may
read it at their heads."""

from typing import Literal, get_args

Format = Literal["feedback", "csv", "label-studio", "argilla", "preferences"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = {"feedback": ".jsonl", "csv": ".csv", "label-studio": ".json", "argilla": ".json", "preferences": ".jsonl"}
MEDIA = {".jsonl": "application/jsonl", ".csv": "text/csv", ".json": "application/json"}
