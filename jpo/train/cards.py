"""What a finished run says in its model card (jpo.export.card writes it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from jpo.data.templates import Template
from jpo.export.card import Training, data_names, method_of, training_card
from jpo.model import LanguageModel
from jpo.train.config import TrainingConfig

__all__ = ["data_names", "run_card"]

_PLACES = ("output", "cache_dir", "ref_logps", "rpo_embeddings", "check_memory", "report_to")  # say where, not what


def _settings(config: TrainingConfig, template: Template) -> dict[str, Any]:
    """The options that most people set, and those that differ from their defaults."""
    said = config.to_dict() | {"template": template.name}
    plain = type(config)()
    own = {item.name for item in fields(config) if item.metadata.get("first")}
    own |= {name for name, value in said.items() if getattr(plain, name, value) != value}
    return {name: said[name] for name in own if name not in _PLACES}


def run_card(
    lm: LanguageModel,
    config: TrainingConfig,
    template: Template,
    sources: Sequence[str],
    records: str,
    history: Mapping[str, Sequence[Any]],
    baseline: Mapping[str, float],
) -> str:
    """README.md of a run: model, data, options, metrics, versions and the paper."""
    method, tags = method_of(config.to_dict())
    training = Training(method, tags, _settings(config, template), sources, records, history, baseline)
    return training_card(lm.source, lm.config["hf"], training, lm.full)
