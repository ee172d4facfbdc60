"""Full fine-tuning: one optimizer step on packed examples, loss on the responses."""

from __future__ import annotations

from typing import Any

from . import Variant, contestant
from .jpo_preference import COMPUTES, load

ENTERS = ("sft-full",)


@contestant("jpo", enters=ENTERS, variants=COMPUTES, gigabytes=3.5)
def jpo_full(work: Any, turns: Any, **how: Any) -> None:
    """SFTTrainer with full=True, and its AdamW."""
    import jpo
    from jpo.train.optimizer import AdamW

    steps = work["steps"]
    config = jpo.SFTConfig(full=True, max_length=512, max_prompt_length=448, token_budget=work["budget"])
    lm = load(work, **how)
    trainer = jpo.SFTTrainer(lm, [record["example"] for step in steps for record in step], config)
    optimizer = AdamW(lm.trainable.params, config)
    starts = [sum(map(len, steps[:place])) for place in range(len(steps) + 1)]

    def repetition(turn: int) -> dict[str, Any]:
        metrics = trainer.step(range(starts[turn], starts[turn + 1]), turn)
        optimizer.step(lm.trainable.grads, 1.5e-6)
        return {"loss": metrics["loss"], "rows": metrics["rows_computed"]}

    turns.loop(repetition)


@contestant(
    "torch",
    enters=ENTERS,
    needs=("torch", "transformers"),
    gigabytes=6,
    variants=(
        Variant("all logits, float32", {"lean": False}),
        Variant("head at response rows, float32, tcmalloc", allocator="tcmalloc"),
        Variant("head at response rows, bfloat16, tcmalloc", {"autocast": True}, "tcmalloc"),
    ),
)
def torch_full(work: Any, turns: Any, lean: bool = True, autocast: bool = False) -> None:
    """The same examples packed with a block-diagonal mask; torch's fused AdamW."""
    import torch

    from . import torch_models as shared

    cast = shared.autocast_or_leave(autocast)
    model = shared.base_model(work).train()
    batches = [shared.Packed([record["ids"] for record in step], "response") for step in work["steps"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def repetition(turn: int) -> dict[str, Any]:
        batch = batches[turn]
        with cast():
            if lean:
                loss = -shared.sequence_logps(model, batch, False).sum() / len(batch.rows)
            else:
                logits = model.lm_head(shared.packed_hidden(model, batch, False)).float()
                loss = torch.nn.functional.cross_entropy(logits[batch.rows], batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "rows": batch.tokens.numel()}

    turns.loop(repetition)
