"""The same preference step by hand in PyTorch: the strongest loop that we could write, and the usual padded one."""

from __future__ import annotations

from typing import Any

from . import Variant, contestant

NEEDS = ("torch", "transformers", "peft")
STEPS = (
    "preference-8",
    "preference-8-cached",
    "preference-4",
    "preference-1",
    "long-prompts",
    "joint-reuse",
    "llama-1b",
)


BY_SEQUENCE = {"by_sequence": True}  # SDPA for each sequence apart: no product outside the diagonal blocks


@contestant(
    "packed torch loop",
    enters=STEPS,
    needs=NEEDS,
    gigabytes=4.5,
    variants=(
        Variant("float32", only=("preference-8",)),
        Variant("float32, tcmalloc", allocator="tcmalloc", only=tuple(step for step in STEPS if step != "llama-1b")),
        Variant("attention by sequence, float32, tcmalloc", BY_SEQUENCE, "tcmalloc", only=("preference-8",)),
        Variant("bfloat16", {"autocast": True}, only=("preference-8",)),
        Variant(
            "bfloat16, tcmalloc", {"autocast": True}, "tcmalloc", only=("preference-8", "long-prompts", "llama-1b")
        ),
        Variant("bfloat16 weights, tcmalloc", {"dtype": "bfloat16"}, "tcmalloc", only=("preference-8", "llama-1b")),
    ),
)
def packed_loop(
    work: Any, turns: Any, autocast: bool = False, by_sequence: bool = False, dtype: str = "float32"
) -> None:
    """Packed without padding; head at scored rows only; fused cross-entropy; reference with the adapter off."""
    import torch

    from . import torch_models as shared

    torch.manual_seed(0)
    cast = shared.autocast_or_leave(autocast)
    model = shared.lora_model(work, dtype)
    if by_sequence:
        model.get_base_model().set_attn_implementation(shared.attend_by_sequence())
    batches = [
        shared.Packed([record["ids"][side] for side in (0, 1) for record in step], work["scope"])
        for step in work["steps"]
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0, fused=True)

    def reference(batch: Any) -> Any:
        with torch.no_grad(), model.disable_adapter(), cast():
            return shared.sequence_logps(model, batch, by_sequence)

    cache = [reference(batch) for batch in batches] if work["cached"] else []

    def repetition(turn: int) -> dict[str, Any]:
        batch = batches[turn]
        ref = cache[turn] if work["cached"] else reference(batch)
        with cast():
            policy = shared.sequence_logps(model, batch, by_sequence)
        chosen, rejected = (policy - ref).chunk(2)
        loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "rows": batch.tokens.numel()}

    turns.loop(repetition)
