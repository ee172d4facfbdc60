"""JPO inside other people's torch loops: for those who train on a GPU, or already have a loop of their own.

    from jpo.torch import jpo_loss, linear_logps, sequence_logps    # extra: pip install 'jpo[torch]'
    from jpo.torch import JPOConfig, JPOTrainer                     # a TRL DPOTrainer that scores pairs jointly

`jpo_loss` takes (B,) log-likelihoods on any device; `sequence_logps` and `linear_logps` run jpo's C kernels on CPU
tensors without a copy, and plain torch elsewhere. The rest of jpo never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jpo.errors import JpoError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise JpoError("jpo.torch needs torch: pip install 'jpo[torch]'") from None

from jpo.torch.functions import jpo_loss, linear_logps, sequence_logps

if TYPE_CHECKING:
    from jpo.torch.trl import JPOConfig, JPOTrainer

__all__ = ["JPOConfig", "JPOTrainer", "jpo_loss", "linear_logps", "sequence_logps"]


def __getattr__(name: str) -> Any:
    if name not in ("JPOConfig", "JPOTrainer"):
        raise AttributeError(f"module 'jpo.torch' has no attribute {name!r}")
    try:
        import trl as _trl  # noqa: F401
    except ImportError:
        raise JpoError(f"jpo.torch.{name} needs trl, peft and datasets: pip install 'jpo[torch]'") from None
    from jpo.torch import trl

    return getattr(trl, name)
