"""Models and adapters on disk for the tests of exports, every value nonzero."""

import numpy as np
from reference.families import configuration
from reference.models import random_values

from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize
from jpo.formats.peft import AdapterConfig, write_adapter
from jpo.formats.tensors import modules


def family_model(folder, name, **changes):
    """A tiny model of a case of reference.families, with tiny's tokenizer; its normalized configuration."""
    hf = {key: value for key, value in {**configuration(name), **changes}.items() if value is not None}
    config = normalize(name, hf)
    write_checkpoint(folder, config, random_values(config), load_checkpoint("tiny").tokenizer)
    return config


def random_adapter(folder, config, seed=1, ranks=None, **settings):
    """An adapter on all linear modules; ranks: end of a module's name -> rank instead of 4."""
    random, tensors = np.random.default_rng(seed), {}
    for module in modules(config):
        stem = f"base_model.model.{module.name}"
        rank = next((value for end, value in (ranks or {}).items() if module.name.endswith(f".{end}")), 4)
        tensors[f"{stem}.lora_A.weight"] = random.standard_normal((rank, module.inputs)) / np.sqrt(module.inputs)
        tensors[f"{stem}.lora_B.weight"] = 0.1 * random.standard_normal((module.outputs, rank))
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    targets = tuple(dict.fromkeys(module.short for module in modules(config)))
    turned = any(module.transposed for module in modules(config))
    own = {"lora_alpha": 8, "fan_in_fan_out": turned, "rank_pattern": ranks or {}, **settings}
    write_adapter(folder, AdapterConfig(4, target_modules=targets, **own), tensors)
    return tensors


def tiny_adapter(folder, **settings):
    """An adapter of the model "tiny"."""
    return random_adapter(folder, load_checkpoint("tiny").config, **settings)
