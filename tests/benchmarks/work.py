"""What each case gives its contestants, as plain JSON: records, token ids, folders, and the arithmetic of each turn.

Turn 0 is the warm-up; lists hold one item a turn. Everybody gets the same records.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import jpo
from jpo.data import preference_pairs, read_records
from jpo.data.encoding import Encoder
from jpo.data.forest import build_forest
from jpo.data.templates import Template
from jpo.formats import load_checkpoint

from . import limits, models
from .contestants import growth as growing

JOINT_CUT = "### Instructions:"  # TRL needs a prompt: what all of the paper's prompts begin with


@dataclass
class Context:
    """Where things are, and how many turns are asked for; what several cases need is made once."""

    folder: Path
    rounds: int
    model: str = "smollm2-135m"
    data: str = "example"
    tldr: str | None = None

    def __enter__(self) -> Context:
        self._temporary = tempfile.TemporaryDirectory(dir=self.folder)
        return self

    def __exit__(self, *_: Any) -> None:
        self._temporary.cleanup()

    def temporary(self, name: str, write: Callable[[str], None]) -> str:
        """A file that lives as long as the run; written at its first use."""
        path = Path(self._temporary.name) / name
        if not path.exists():
            write(str(path))
        return str(path)

    @cached_property
    def lm(self) -> jpo.LanguageModel:
        """The model, for its tokenizer and shape."""
        return jpo.load(self.model)

    @cached_property
    def hf(self) -> str:
        """The model as a float32 Hugging Face directory, for torch; written once and kept."""
        folder = self.folder / f"{Path(self.model).name}-hf"
        if not (folder / "written").exists():
            jpo.load(self.model).merge(folder)
            (folder / "written").touch()
        return str(folder)

    @cached_property
    def gguf(self) -> str | None:
        """The model's GGUF file, for llama.cpp; None where it is none."""
        return models.gguf_path(self.model)

    def sampled_pairs(self, count: int) -> list[dict[str, str]]:
        """Pairs of two responses, sampled once from the model (temperature 1, 64 tokens) behind real posts; kept."""
        path = self.folder / f"{Path(self.model).name}-tldr-pairs.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if len(kept) < count:
            if self.tldr is None:
                raise SystemExit("long-prompts needs --tldr FILE: records with an instruction")
            kept = models.sample_pairs(self.lm, self.tldr, count)
            path.write_text(json.dumps(kept), encoding="utf-8")
        return list(kept[:count])

    @cached_property
    def pairs(self) -> list[dict[str, str]]:
        """The preference records, under the paper's names."""
        return [pair.to_record() for pair in preference_pairs(read_records(self.data))]


def _texts(template: Template, pair: dict[str, str], scope: str) -> dict[str, str]:
    """The record as TRL takes it: the texts that jpo scores, cut where they meet."""
    sides = {}
    for side, i, r in (("chosen", "i_chosen", "r_chosen"), ("rejected", "i_reject", "r_reject")):
        sides[side] = (template.prompt_text(pair[i]), template.response_text(pair[i], pair[r])[0])
    if scope == "response":
        return {"prompt": sides["chosen"][0], "chosen": sides["chosen"][1], "rejected": sides["rejected"][1]}
    whole = {side: (prompt + response).removeprefix(JOINT_CUT) for side, (prompt, response) in sides.items()}
    return {"prompt": JOINT_CUT, **whole}


def _steps(context: Context, batches: Sequence[Sequence[dict[str, str]]], template: str, scope: str) -> list[Any]:
    """Records with their texts and token ids: [step][pair] -> {pair, trl, ids: [[prompt, response] chosen,
    rejected]}."""
    named = Template.named(template)
    encoder = Encoder(context.lm.tokenizer, named, 512, 448)
    steps = []
    for batch in batches:
        step = []
        for pair in batch:
            sides = [
                encoder.encode(pair[f"i_{side}"], pair[response])
                for side, response in (("chosen", "r_chosen"), ("reject", "r_reject"))
            ]
            ids = [[list(one.prompt), list(one.response)] for one in sides]
            step.append({"pair": pair, "trl": _texts(named, pair, scope), "ids": ids})
        steps.append(step)
    return steps


def _arithmetic(config: Mapping[str, Any], steps: list[Any], scope: str, cached: bool) -> dict[str, list[float]]:
    """units (counted tokens), rows and flops of each turn."""
    found: dict[str, list[float]] = {"units": [], "rows": [], "flops": []}
    for step in steps:
        chosen, rejected = ([record["ids"][side] for record in step] for side in (0, 1))
        n = len(step)
        forest = build_forest(chosen + rejected, scope, [(i, i + n) for i in range(n)])
        found["units"].append(sum(len(prompt) + len(response) for prompt, response in chosen + rejected))
        found["rows"].append(forest.rows)
        found["flops"].append(limits.preference_flops(config, forest, cached))
    return found


def _preference(
    context: Context,
    batches: Sequence[Sequence[dict[str, str]]],
    scope: str = "response",
    template: str = "spaced",
    cached: bool = False,
) -> dict[str, Any]:
    steps = _steps(context, batches, template, scope)
    common = {"model": context.model, "hf": context.hf, "template": template, "scope": scope, "cached": cached}
    return {**common, "targets": "all-linear", "steps": steps, **_arithmetic(context.lm.config, steps, scope, cached)}


def _cut(records: Sequence[dict[str, str]], size: int, count: int) -> list[list[dict[str, str]]]:
    """`count` batches of `size` records, around again where there are too few."""
    return [[records[(size * step + i) % len(records)] for i in range(size)] for step in range(count)]


def preference(context: Context, pairs: int, cached: bool = False) -> dict[str, Any]:
    """Steps over conditional pairs, response scope."""
    return _preference(context, _cut(context.pairs, pairs, context.rounds + 1), cached=cached)


def llama_1b(context: Context, pairs: int = 8, layers: int = 16) -> dict[str, Any]:
    """The same for a random model of 1.07 billion bfloat16 weights; every engine opens the one directory."""
    model = models.write_llama_1b(context.folder, layers)
    steps = _steps(context, _cut(context.pairs, pairs, context.rounds + 1), "spaced", "response")
    common = {"model": model, "hf": model, "template": "spaced", "scope": "response", "cached": False, "warm": False}
    arithmetic = _arithmetic(load_checkpoint(model).config, steps, "response", False)
    return {**common, "targets": "all-linear", "steps": steps, **arithmetic}


def long_prompts(context: Context, pairs: int) -> dict[str, Any]:
    """TL;DR-shaped pairs: two responses a post, sampled once by jpo and kept for everyone."""
    records = context.sampled_pairs(pairs * (context.rounds + 1))
    batches = _cut(records, pairs, context.rounds + 1)
    made = _preference(context, batches, template="tldr")
    return {**made, "apart": _steps(context, [_apart(batch) for batch in batches], "tldr", "response")}


def _apart(batch: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The same pairs with nothing to share: every instruction begins with another number."""
    return [
        {**pair, "i_chosen": f"{2 * place} {pair['i_chosen']}", "i_reject": f"{2 * place + 1} {pair['i_reject']}"}
        for place, pair in enumerate(batch)
    ]


def joint_reuse(context: Context) -> dict[str, Any]:
    """Joint pairs, each (I, R) in four pairs of the step: four chosen against four rejected of other instructions."""
    batches = []
    for step in range(context.rounds + 1):
        eight = [context.pairs[(8 * step + i) % len(context.pairs)] for i in range(8)]
        batches.append(
            [
                {
                    "i_chosen": w["i_chosen"],
                    "r_chosen": w["r_chosen"],
                    "i_reject": l["i_reject"],
                    "r_reject": l["r_reject"],
                }
                for w in eight[:4]
                for l in eight[4:]
            ]
        )
    made = _preference(context, batches, scope="joint")
    return {**made, "apart": _steps(context, [_apart(batch) for batch in batches], "spaced", "joint")}


def logits(context: Context, gradient: bool) -> dict[str, Any]:
    """[1024, 49152] float32; a unit is a GB of logits, read once."""
    tokens, vocab = 1024, 49152
    size = tokens * vocab * 4.0
    turns = context.rounds + 1
    shape = {"tokens": tokens, "vocab": vocab, "gradient": gradient}
    return {**shape, "units": [size / 1e9] * turns, "flops": [size] * turns}


def linear(context: Context, vocab: int) -> dict[str, Any]:
    """1024 rows of 576 under a head; a unit is a GFLOP."""
    tokens, hidden = 1024, 576
    flops = 2.0 * tokens * hidden * vocab
    turns = context.rounds + 1
    shape = {"tokens": tokens, "vocab": vocab, "hidden": hidden}
    return {**shape, "units": [flops / 1e9] * turns, "flops": [flops] * turns}


def text_of_512(context: Context, last_only: bool) -> dict[str, Any]:
    """512 tokens of running text, scored throughout or as a prompt."""
    tokenizer = context.lm.tokenizer
    ids = tokenizer.encode(" ".join(pair["r_chosen"] for pair in context.pairs[:64]))
    while True:  # a text whose own encoding has 512 tokens
        text = tokenizer.decode(ids[:512])
        if len(tokenizer.encode(text)) == 512 or len(ids) <= 512:
            break
        ids = ids[1:]
    ids = tokenizer.encode(text)
    flops = limits.scoring_flops(context.lm.config, len(ids), 1 if last_only else len(ids) - 1)
    turns = context.rounds + 1
    common = {"model": context.model, "hf": context.hf, "gguf": context.gguf, "ids": ids, "text": text}
    return {**common, "last_only": last_only, "units": [len(ids)] * turns, "flops": [flops] * turns}


def generation(context: Context, streams: int) -> dict[str, Any]:
    """64 tokens behind a short prompt: one greedy stream, or samples at temperature 1."""
    prompt = "Write a long story about a lighthouse keeper, with many details.\n\nOnce upon a time"
    ids = context.lm.tokenizer.encode(prompt)
    common = {"model": context.model, "hf": context.hf, "gguf": context.gguf, "prompt": prompt, "prompt_ids": ids}
    turns = context.rounds + 1
    sampling = {"streams": streams, "temperature": 0.0 if streams == 1 else 1.0, "new_tokens": 64}
    return {**common, **sampling, "units": [streams * 63] * turns}


def full_tuning(context: Context, budget: int = 1024) -> dict[str, Any]:
    """Examples packed to at most 1024 rows a step."""
    encoder = Encoder(context.lm.tokenizer, Template.named("spaced"), 512, 448)
    steps: list[list[Any]] = []
    room = 0
    for pair in itertools.cycle(context.pairs):
        one = encoder.encode(pair["i_chosen"], pair["r_chosen"])
        if len(one) > room:
            if len(steps) > context.rounds:
                break
            steps.append([])
            room = budget
        room -= len(one)
        example = {"instruction": pair["i_chosen"], "response": pair["r_chosen"]}
        steps[-1].append({"example": example, "ids": [list(one.prompt), list(one.response)]})
    rows = [sum(len(part) for record in step for part in record["ids"]) for step in steps]
    loss_rows = [sum(len(record["ids"][1]) for record in step) for step in steps]
    flops = [limits.full_tuning_flops(context.lm.config, *pair) for pair in zip(rows, loss_rows)]
    return {
        "model": context.model, "hf": context.hf, "budget": budget, "steps": steps,
        "units": rows, "rows": rows, "flops": flops,
    }  # fmt: skip


def start(context: Context, load: bool) -> dict[str, Any]:
    """Seconds, so that a unit is one start."""
    return {"model": context.model, "hf": context.hf, "load": load, "units": [1] * (context.rounds + 1)}


def accuracy(context: Context, count: int = 32) -> dict[str, Any]:
    """Pairs and one adapter whose A and B are both nonzero."""
    folder = context.folder / "adapter"
    lm = jpo.load(context.model)
    lm.add_lora(target_modules="all-linear", seed=1)
    random = np.random.Generator(np.random.Philox(2))
    assert lm.trainable is not None
    for name in lm.trainable.names:
        if ".lora_B." in name:
            view = lm.trainable.view(name)
            view[...] = 0.004 * random.standard_normal(view.shape, dtype=np.float32)
    lm.save_adapter(folder)
    pairs = _steps(context, [_cut(context.pairs, count, 1)[0]], "spaced", "response")[0]
    common = {"model": context.model, "hf": context.hf, "adapter": str(folder), "targets": "all-linear"}
    return {**common, "pairs": pairs, "folder": str(context.folder), "warm": False, "units": [1] * (context.rounds + 1)}


def mistral(context: Context) -> dict[str, Any]:
    """Two pairs of 512 counted tokens (128 of prompt, 128 a response) for a random model of Mistral-7B's shape."""
    model = context.temporary("mistral-7b-shape.gguf", models.write_mistral_shape)
    config = load_checkpoint(model).config
    words = " ".join(pair["r_chosen"] for pair in context.pairs[:200])
    ids = load_checkpoint(model).tokenizer.encode(words)
    texts = [load_checkpoint(model).tokenizer.decode(ids[128 * i : 128 * i + 127]) for i in range(6)]
    pairs = [
        {"i_chosen": texts[3 * i], "r_chosen": texts[3 * i + 1], "i_reject": texts[3 * i], "r_reject": texts[3 * i + 2]}
        for i in range(2)
    ]
    encoder = Encoder(load_checkpoint(model).tokenizer, Template.named("raw"), 512, 448)
    step = []
    for pair in pairs:
        sides = [encoder.encode(pair["i_chosen"], pair["r_chosen"]), encoder.encode(pair["i_reject"], pair["r_reject"])]
        step.append({"pair": pair, "ids": [[list(one.prompt), list(one.response)] for one in sides]})
    steps = [step] * (context.rounds + 1)
    common = {
        "model": model,
        "template": "raw",
        "scope": "response",
        "cached": False,
        "targets": "q_proj,k_proj,v_proj",
        "token_budget": 512,  # a pair at a time, as a machine of 8 GB needs it
    }
    arithmetic = _arithmetic(config, steps, "response", False)
    return {**common, "steps": steps, "warm": False, **arithmetic}


def growth(context: Context, axis: str) -> dict[str, Any]:
    """Random models of growing size, or SmolLM2 itself."""
    made = {"model": context.model, "units": [1] * (context.rounds + 1)}
    if axis in ("vocabulary", "width"):
        sizes = growing.VOCABULARIES if axis == "vocabulary" else growing.WIDTHS
        made["models"] = {str(size): models.write_sized(context.folder, axis, size) for size in sizes}
    return made
