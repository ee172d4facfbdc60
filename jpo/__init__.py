"""jpo: Joint Preference Optimization of language models on the CPU (arXiv 2404.00530).

Names are imported when they are first used, so that `import jpo` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; at run time __getattr__ does it
    from jpo import (
        data as data,
    )
    from jpo import (
        doctor as doctor,
    )
    from jpo import (
        errors as errors,
    )
    from jpo import (
        evaluate as evaluate,
    )
    from jpo import (
        feedback as feedback,
    )
    from jpo import (
        formats as formats,
    )
    from jpo import (
        model as model,
    )
    from jpo import (
        objectives as objectives,
    )
    from jpo import (
        plots as plots,
    )
    from jpo import (
        study as study,
    )
    from jpo import (
        train as train,
    )
    from jpo._core import get_num_threads as get_num_threads
    from jpo._core import set_num_threads as set_num_threads
    from jpo.errors import JpoError as JpoError
    from jpo.generation import Completion as Completion
    from jpo.logps import (
        linear_logps as linear_logps,
    )
    from jpo.logps import (
        linear_logps_grad as linear_logps_grad,
    )
    from jpo.logps import (
        sequence_logps as sequence_logps,
    )
    from jpo.logps import (
        sequence_logps_grad as sequence_logps_grad,
    )
    from jpo.model import LanguageModel as LanguageModel
    from jpo.model import load as load
    from jpo.objectives import preference_loss as preference_loss
    from jpo.train import (
        PreferenceConfig as PreferenceConfig,
    )
    from jpo.train import (
        PreferenceTrainer as PreferenceTrainer,
    )
    from jpo.train import (
        SFTConfig as SFTConfig,
    )
    from jpo.train import (
        SFTTrainer as SFTTrainer,
    )

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


if not TYPE_CHECKING:  # a checker refuses names that are not there

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
