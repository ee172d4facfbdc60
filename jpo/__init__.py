"""jpo: Joint Preference Optimization of language models on the CPU (arXiv 2404.00530).

Names are imported when they are first used, so that `import jpo` stays quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> the module that holds it
_HOMES = {
    "load": "jpo.model",
    "LanguageModel": "jpo.model",
    "Completion": "jpo.generation",
    "sequence_logps": "jpo.logps",
    "sequence_logps_grad": "jpo.logps",
    "linear_logps": "jpo.logps",
    "linear_logps_grad": "jpo.logps",
    "preference_loss": "jpo.objectives",
    "PreferenceConfig": "jpo.train",
    "PreferenceTrainer": "jpo.train",
    "SFTConfig": "jpo.train",
    "SFTTrainer": "jpo.train",
    "JpoError": "jpo.errors",
    "get_num_threads": "jpo._core",
    "set_num_threads": "jpo._core",
}
_MODULES = (
    "data",
    "doctor",
    "errors",
    "evaluate",
    "feedback",
    "formats",
    "model",
    "objectives",
    "plots",
    "study",
    "train",
)

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"jpo.{name}")
    if name == "_core":
        try:
            return importlib.import_module("jpo._core")
        except ModuleNotFoundError:
            raise ImportError(
                f"jpo's C core is not built beside {__file__}; run: pip install -e .  in the repository's root "
                "(or start Python in another folder, where an installed jpo is found)"
            ) from None
    raise AttributeError(f"module 'jpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
