"""Model cards: README.md with the YAML head that the Hugging Face hub reads, beside each adapter and merged model.

Said are what was trained, on what, with which settings, what came out, and with which version. Nothing of the machine
or the day, so that a run and its resumption leave the same card. A card that a person wrote or changed is never
touched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jpo.disk import write_text
from jpo.formats.files import read_text
from jpo.formats.peft import base_name

CARD = "README.md"
_MARK = "<!-- Written by jpo, and written anew by it; take this line out to keep a text of your own. -->"
_LICENSES = {"smollm2-135m": "apache-2.0", "gemma3-270m": "gemma"}
_LIMIT = 64 << 20  # bytes
# metrics that differ between runs of the same numbers, or say how it was computed and not what came out
_UNSAID = re.compile(
    r"step|epoch|learning_rate|grad_norm|"
    r"(?:.*_)?(?:step_seconds|peak_rss_gb|rows_computed|unscored_shared_tokens|num_tokens)"
)
_PLAIN = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_CITATION = """```bibtex
@article{bansal2024comparing,
  title   = {Comparing Bad Apples to Good Oranges: Aligning Large Language Models via Joint Preference Optimization},
  author  = {Bansal, Hritik and Suvarna, Ashima and Bhatt, Gantavya and Peng, Nanyun and Chang, Kai-Wei and
             Grover, Aditya},
  journal = {arXiv preprint arXiv:2404.00530},
  year    = {2024}
}
```"""


@dataclass(frozen=True)
class Training:
    """What a card says of a training run."""

    method: str  # one sentence's beginning: "trained with JPO (...)"
    tags: Sequence[str]
    settings: Mapping[str, Any]  # options by name, those of interest
    data: Sequence[str]  # names of the training sets
    records: str  # "96 pairs"
    history: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)


def data_names(data: Any) -> list[str]:
    """What given training data are called: a file's own name, a dataset's; records in memory have none."""
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        return [os.path.basename(text.rstrip("/")) if os.path.exists(text) else text]
    if isinstance(data, (list, tuple)) and all(isinstance(entry, (str, os.PathLike)) for entry in data):
        return [name for entry in data for name in data_names(entry)]
    return []


def _base(source: str, hf: Mapping[str, Any]) -> str:
    """The base model's name on the hub where it is known; of a local model the name of its file or folder."""
    name = base_name(source, hf)
    return os.path.basename(name.rstrip("/")) if os.path.isabs(name) else name


def _license(source: str) -> str | None:
    """The licence that is known of a named model, or that the base's own card says."""
    if source in _LICENSES:
        return _LICENSES[source]
    path = os.path.join(source, CARD)
    if not os.path.isfile(path):
        return None
    found = re.match(r"---\n(?:.*\n)*?license:[ \t]*([\w.-]+)[ \t]*\n", read_text(path, _LIMIT))
    return found[1] if found else None


def _head(values: Mapping[str, Any]) -> list[str]:
    """YAML; strings are quoted as JSON does, which YAML reads."""
    lines = ["---"]
    for key, value in values.items():
        if isinstance(value, (list, tuple)):
            lines += [f"{key}:", *(f"- {_scalar(entry)}" for entry in value)] if value else []
        elif value is not None:
            lines.append(f"{key}: {_scalar(value)}")
    return [*lines, "---"]


def _scalar(value: str) -> str:
    plain = _PLAIN.fullmatch(value) and not re.fullmatch(
        r"[\d.]+|true|false|null|yes|no|on|off|~", value, re.IGNORECASE
    )
    return value if plain else json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]


def _results(training: Training) -> list[str]:
    """The last value of each metric, and of the evaluation's the one before training."""
    rows = []
    for key, values in training.history.items():
        last = next((value for value in reversed(values) if value is not None), None)
        if _UNSAID.fullmatch(key) or last is None:
            continue
        rows.append((key, training.baseline.get(key, ""), last))
    return _table(("metric", "before training", "at the end"), rows) if rows else []


def _sections(training: Training) -> list[str]:
    steps = training.history.get("step") or [0]
    named = ", ".join(f"`{name}`" for name in training.data) or "records that have no file"
    said = {key: value for key, value in training.settings.items() if value is not None}
    lines = ["## Training", "", f"{training.records} of {named}, {steps[-1]} steps.", ""]
    lines += [*_table(("option", "value"), sorted(said.items())), ""]
    found = _results(training)
    return [*lines, "## Results", "", *found, ""] if found else lines


def training_card(source: str, hf: Mapping[str, Any], training: Training, full: bool) -> str:
    """The card of a trained adapter, or of a model whose every weight was trained (full)."""
    from jpo import __version__

    base = _base(source, hf)
    head = {
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": "finetune" if full else "adapter",
        "license": _license(source),
        "datasets": [name for name in training.data if _PLAIN.fullmatch(name)],
        "tags": ["jpo", *([] if full else ["lora"]), *training.tags],
    }
    what = "The weights" if full else "A LoRA adapter"
    title = f"# {base.rsplit('/', 1)[-1]}, {training.method.split(' (')[0]}"
    intro = [_MARK, "", title, "", f"{what} of `{base}`, trained with {training.method}.", ""]
    return "\n".join([*_head(head), *intro, *_sections(training), *_closing(__version__, "" if full else base)]) + "\n"


def _closing(version: str, base: str = "") -> list[str]:
    """Use (of an adapter of `base`), versions and citation."""
    use = []
    if base:
        use = [
            "## Use", "", "```python", "import jpo", "", f'lm = jpo.load("{base}")', 'lm.load_adapter("DIRECTORY")',
            "```", "",
            "It is in PEFT's format: `peft.PeftModel.from_pretrained(model, DIRECTORY)` opens it too; `jpo export` writes "
            "it for llama.cpp and Ollama.", "",
        ]  # fmt: skip
    return [*use, "## Versions", "", f"jpo {version}", "", "## Citation", "", _CITATION]


def merged_card(source: str, hf: Mapping[str, Any], adapter: str, settings: Mapping[str, Any]) -> str:
    """The card of a model with an adapter merged in; what the adapter's own card says of its training goes along."""
    from jpo import __version__

    base, own, training = _base(source, hf), os.path.join(adapter, CARD), ""
    data: list[str] = []
    if os.path.isfile(own):
        text = read_text(own, _LIMIT)
        found = re.search(r"^## Training\n.*?(?=^## (?:Use|Versions)\n)", text, re.DOTALL | re.MULTILINE)
        training = found[0].rstrip("\n") if found and _MARK in text else ""
        listed = re.search(r"^datasets:\n((?:- .*\n)+)", text, re.MULTILINE)
        data = [line[2:].strip('"') for line in listed[1].splitlines()] if listed and training else []
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": "finetune",
        "license": _license(source),
        "datasets": data,
        "tags": ["jpo", *([] if not settings else _tags(settings))],
    }
    title = f"# {base.rsplit('/', 1)[-1]} with an adapter merged in"
    lines = [*_head(head), _MARK, "", title, "", f"`{base}` with a LoRA adapter merged in: W + scaling B A.", ""]
    lines += [training, ""] if training else []
    return "\n".join([*lines, *_closing(__version__)]) + "\n"


def _tags(settings: Mapping[str, Any]) -> list[str]:
    training = settings.get("training")
    return method_of(training)[1] if isinstance(training, Mapping) else []


def method_of(options: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(what a run with these options is called, its tags)."""
    scope = options.get("scope")
    if scope is None:
        return "supervised fine-tuning (loss on the responses)", ["sft"]
    loss = options.get("loss", "sigmoid")
    loss = ",".join(loss) if isinstance(loss, (list, tuple)) else str(loss)
    own = [] if loss == "sigmoid" else loss.split(",")
    if scope == "joint":
        return f"JPO (joint preference optimization, arXiv 2404.00530; loss {loss})", ["preference-optimization", *own]
    name = f"the loss {loss}" if own else "DPO"
    return f"{name} (responses to one instruction compared)", ["preference-optimization", *(own or ["dpo"])]


def is_own_card(path: str) -> bool:
    """Whether jpo wrote the card at `path`."""
    return _MARK in read_text(path, _LIMIT)


def write_card(folder: str, text: str) -> bool:
    """Writes `folder`/README.md; False, and nothing is done, where one stands there that a person wrote."""
    path = os.path.join(folder, CARD)
    if os.path.exists(path) and not is_own_card(path):
        return False
    write_text(path, text)
    return True
