"""What a number type costs in accuracy: D = s_w - s_l of pairs under one small nonzero adapter, and LoRA's
gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jpo.storage import COMPUTES

from . import Variant, contestant
from .jpo_preference import load

ENTERS = ("accuracy",)


@contestant(
    "jpo",
    enters=ENTERS,
    gigabytes=1.5,
    variants=tuple(Variant(compute, {"compute": compute}) for compute in COMPUTES),
)
def jpo_accuracy(work: Any, turns: Any, compute: str) -> None:
    """D of all pairs; gradients of the first eight into a file."""
    import numpy as np

    import jpo

    lm = load(work, compute)
    lm.load_adapter(work["adapter"])
    sequences = [pair["ids"][side] for side in (0, 1) for pair in work["pairs"]]
    config = jpo.PreferenceConfig(scope="response", max_length=512, max_prompt_length=448)
    trainer = jpo.PreferenceTrainer(lm, [pair["pair"] for pair in work["pairs"]], config)

    def repetition(turn: int) -> dict[str, Any]:
        policy, reference = (lm.sequence_logps_ids(sequences, adapter=on) for on in (True, False))
        chosen, rejected = np.split(policy - reference, 2)
        _, gradients = trainer.loss_and_gradients([pair["pair"] for pair in work["pairs"][:8]])
        path = Path(work["folder"]) / f"gradients-{compute}.npz"
        np.savez(path, **gradients)
        return {"D": (chosen - rejected).tolist(), "gradients": str(path)}

    turns.loop(repetition)


@contestant(
    "torch",
    enters=ENTERS,
    needs=("torch", "transformers", "peft"),
    gigabytes=6,
    variants=(Variant("float32"), Variant("bfloat16 autocast", {"autocast": True})),
)
def torch_accuracy(work: Any, turns: Any, autocast: bool = False) -> None:
    """D of the same pairs, eight at a time."""
    import torch

    from . import torch_models as shared

    cast = shared.autocast_or_leave(autocast)
    model = shared.lora_model(work)
    pairs = work["pairs"]

    @torch.no_grad()
    def repetition(turn: int) -> dict[str, Any]:
        d: list[float] = []
        for start in range(0, len(pairs), 8):
            group = pairs[start : start + 8]
            batch = shared.Packed([pair["ids"][side] for side in (0, 1) for pair in group], "response")
            with cast():
                policy = shared.sequence_logps(model, batch, False)
                with model.disable_adapter():
                    reference = shared.sequence_logps(model, batch, False)
            chosen, rejected = (policy - reference).double().chunk(2)
            d += (chosen - rejected).tolist()
        return {"D": d}

    turns.loop(repetition)
