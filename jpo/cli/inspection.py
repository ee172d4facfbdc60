"""What jpo inspect finds in a model: its family, tensors, what an adapter would train, memory, template; and lists in a
form that people read. Knows a loaded model's shapes; allocates nothing of its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from jpo.memory import free_bytes, size

_PLAIN = 8  # entries of a list that are shown one by one
_ENDS = (3, 1)  # entries shown of the beginning and the end of a longer one


def model_facts(path: str) -> dict[str, Any]:
    """Everything about a model as JSON holds it: sizes in bytes, lists whole."""
    from jpo.data.templates import Template
    from jpo.formats import load_checkpoint
    from jpo.model import LanguageModel

    checkpoint = load_checkpoint(path, check=False)
    lm = LanguageModel(checkpoint)
    config = {key: value for key, value in checkpoint.config.items() if key != "hf"}
    tokenizer = checkpoint.tokenizer
    return {
        "model": checkpoint.source,
        "family": config["model_type"],
        "architecture": (checkpoint.config["hf"].get("architectures") or [None])[0],
        "values": lm.values(),
        "context_length": config["max_position_embeddings"],
        "tensors": _tensors(checkpoint.tensors.values()),
        "adapter": _adapter(lm),
        "memory": _memory(lm, checkpoint),
        "template": {
            "plain_records": Template.named(None, tokenizer).name,
            "conversational_records": Template.named(None, tokenizer, conversational=True).name,
            "chat_template": tokenizer.chat_template,
        },
        "config": _whole(config),
    }


def _whole(value: Any) -> Any:
    """Arrays and tuples as lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _whole(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_whole(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _tensors(tensors: Any) -> dict[str, dict[str, int]]:
    """Stored type -> how many tensors, values and bytes."""
    found: dict[str, Counter[str]] = {}
    for tensor in tensors:
        count = 1
        for extent in tensor.shape:
            count *= extent
        found.setdefault(tensor.dtype, Counter()).update(tensors=1, values=count, bytes=tensor.data.nbytes)
    return {kind: dict(sums) for kind, sums in sorted(found.items(), key=lambda item: -item[1]["bytes"])}


def _adapter(lm: Any) -> dict[str, Any]:
    """What a LoRA adapter of the default rank trains, module by module, and which of them it takes by default."""
    from jpo.formats.peft import LORA
    from jpo.formats.tensors import modules
    from jpo.lora import adapted_modules, select_modules

    own = modules(lm.config)
    default = {module.name for module in adapted_modules(own, select_modules(own, LORA.target_modules))}
    kinds: dict[str, dict[str, Any]] = {}
    for module in own:
        kind = kinds.setdefault(
            module.short, {"count": 0, "shapes": [], "trained_values": 0, "default": module.name in default}
        )
        kind["count"] += 1
        kind["trained_values"] += LORA.r * (module.inputs + module.outputs)
        if [module.outputs, module.inputs] not in kind["shapes"]:
            kind["shapes"].append([module.outputs, module.inputs])
    return {
        "r": LORA.r,
        "trained_values": lm.adapter_size(LORA.r).values,
        "trained_values_all_linear": lm.adapter_size(LORA.r, target_modules="all-linear").values,
        "modules": kinds,
    }


def _memory(lm: Any, checkpoint: Any) -> dict[str, int]:
    """Bytes: the file, the weights held as stored, whole runs at the default settings, and what is free here."""
    from jpo.train.config import PreferenceConfig
    from jpo.train.memory import Settings, estimate

    config = PreferenceConfig()
    rows = config.token_budget

    def run(recompute: bool, full: bool) -> int:
        return estimate(lm, config, Settings(rows, rows, recompute, "auto", full)).total

    weights = lm.stored_bytes("auto")
    return {
        "file": sum(map(len, checkpoint.maps)) or weights,
        "loaded": weights,
        "training_lora": run(False, False),
        "training_lora_gradient_checkpointing": run(True, False),
        "training_full": run(False, True),
        "free": free_bytes(),
    }


# ---- for people -----------------------------------------------------------------------------------------------------


def model_rows(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the table, from what model_facts found."""
    adapter, memory, template = facts["adapter"], facts["memory"], facts["template"]
    chat = template["chat_template"]
    rows: dict[str, Any] = {
        "family": f"{facts['family']} ({facts['architecture']})",
        "values": facts["values"],
        "context length": f"{facts['context_length']:,} tokens",
        "tensors": {
            kind: f"{found['tensors']} tensors, {found['values']:,} values, {size(found['bytes'])}"
            for kind, found in facts["tensors"].items()
        },
        f"adapter of rank {adapter['r']} (* by default)": {
            f"{'*' if found['default'] else ' '} {name}": _module(found) for name, found in adapter["modules"].items()
        },
        "trained values": f"{adapter['trained_values']:,}; with --target-modules all-linear "
        f"{adapter['trained_values_all_linear']:,}; with --full {facts['values']:,}",
        "memory": {
            "file": size(memory["file"]),
            "loaded": f"{size(memory['loaded'])}, pages of the file where it can be mapped",
            "training an adapter": f"{size(memory['training_lora'])}, with --gradient-checkpointing "
            f"{size(memory['training_lora_gradient_checkpointing'])} (jpo train --dry-run: of your data)",
            "full fine-tuning": size(memory["training_full"]),
            "free here": size(memory["free"]),
        },
        "template": f"{template['plain_records']}; {template['conversational_records']} for conversational records"
        + (" (the model's own)" if chat else "; the model has no chat template"),
    }
    return rows | {"configuration": _flat(facts["config"])}


def _module(found: Mapping[str, Any]) -> str:
    shapes = ", ".join(f"({outputs}, {inputs})" for outputs, inputs in found["shapes"])
    return f"{found['count']} of {shapes}: {found['trained_values']:,} trained values"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of a list (rotary) as rows of their own, lists shortened."""
    rows: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, table in enumerate(value):
                rows |= {f"{key}[{index}].{name}": shortened(entry) for name, entry in table.items()}
        else:
            rows[key] = shortened(value)
    return rows


def shortened(value: Any) -> Any:
    """A list as people read it: runs of equal entries as "0 x 30", repeated patterns as "(512 x 5, 0) x 3", long lists
    of different numbers by their ends and their count; anything else as it is."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) <= _PLAIN and len(set(map(str, value))) > 1:
        return list(value) or "-"
    runs = [(_short(entry), len(list(same))) for entry, same in groupby(value)]
    period = _period(runs)
    if 2 * period <= len(runs):
        return f"({_joined(runs[:period])}) x {len(runs) // period}"
    if len(runs) <= _PLAIN:
        return _joined(runs) or "-"
    first, last = _ENDS
    ends = [*map(_short, value[:first]), "...", *map(_short, value[-last:])]
    return f"{', '.join(ends)} ({len(value)} values)"


def _short(entry: Any) -> str:
    return f"{entry:.4g}" if isinstance(entry, float) else str(entry)


def _joined(runs: Sequence[tuple[str, int]]) -> str:
    return ", ".join(entry if count == 1 else f"{entry} x {count}" for entry, count in runs)


def _period(runs: Sequence[tuple[str, int]]) -> int:
    """Length of the shortest beginning of which `runs` is a repetition."""
    whole = len(runs)
    return next((n for n in range(1, whole + 1) if whole % n == 0 and list(runs[:n]) * (whole // n) == list(runs)), 1)
