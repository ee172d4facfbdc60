"""jpo's LoRA preference step: passes, backward and optimizer, through the trainer that users call."""

from __future__ import annotations

from typing import Any

from . import LeftOut, Variant, contestant

EVERY_COMPUTE = ("preference-8", "long-prompts", "sft-full", "score-512", "prompt-512", "llama-1b")
COMPUTES = (
    Variant("float32"),
    Variant("float32 by OpenBLAS", {"openblas": True}, only=("preference-8", "score-512", "prompt-512")),
    Variant("int16", {"compute": "int16"}, only=EVERY_COMPUTE),
    Variant("bfloat16", {"compute": "bfloat16"}, only=(*EVERY_COMPUTE, "mistral-7b")),
    Variant("bfloat16x2", {"compute": "bfloat16x2"}, only=(*EVERY_COMPUTE, "mistral-7b")),
    Variant("bfloat16x3", {"compute": "bfloat16x3"}, only=EVERY_COMPUTE),
    Variant("float32, nothing shared", {"steps": "apart"}, only=("long-prompts", "joint-reuse")),
)


def load(work: dict[str, Any], compute: str = "float32", openblas: bool = False) -> Any:
    """The model; a compute type that this processor lacks leaves the contestant out with jpo's own message."""
    import jpo
    from jpo import _core

    _core._linear_openblas(openblas)
    try:
        return jpo.load(work["model"], compute=compute)
    except jpo.JpoError as error:
        raise LeftOut(str(error)) from None


@contestant(
    "jpo",
    enters=(
        "preference-8",
        "preference-8-cached",
        "preference-4",
        "preference-1",
        "long-prompts",
        "joint-reuse",
        "mistral-7b",
        "llama-1b",
    ),
    variants=COMPUTES,
    gigabytes=1.5,
)
def jpo_step(work: Any, turns: Any, steps: str = "steps", **how: Any) -> None:
    """One optimizer step a turn."""
    import jpo
    from jpo.train.optimizer import AdamW

    lm = load(work, **how)
    batches = work[steps]
    config = jpo.PreferenceConfig(
        scope=work["scope"], template=work["template"], batch_size=len(batches[0]), target_modules=work["targets"],
        max_length=512, max_prompt_length=448, precompute_ref_log_probs=work["cached"],
        token_budget=work.get("token_budget", 1024),
    )  # fmt: skip
    trainer = jpo.PreferenceTrainer(lm, [record["pair"] for batch in batches for record in batch], config)
    if work["cached"]:
        trainer.precompute()
    optimizer = AdamW(lm.trainable.params, config)

    def repetition(turn: int) -> dict[str, Any]:
        size = len(batches[0])
        metrics = trainer.step(range(turn * size, (turn + 1) * size), turn)
        optimizer.step(lm.trainable.grads, 5e-5)
        return {"loss": metrics["loss"], "rows": metrics["rows_computed"], "tokens": metrics["num_tokens"]}

    turns.loop(repetition)
