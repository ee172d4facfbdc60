"""TRL's DPOTrainer on the same records, driven by its own train(): a callback waits for each turn."""

from __future__ import annotations

import tempfile
from typing import Any

from . import Variant, contestant


@contestant(
    "TRL",
    enters=("preference-8", "preference-4", "long-prompts", "joint-reuse"),
    needs=("trl", "torch", "transformers", "peft", "datasets", "accelerate"),
    gigabytes=19,
    variants=(
        Variant("as installed", {"defaults": True}, only=("preference-8",)),
        Variant("float32", only=("preference-8", "long-prompts", "joint-reuse")),
        Variant("float32, tcmalloc", allocator="tcmalloc"),
        Variant("bfloat16, tcmalloc", {"autocast": True}, "tcmalloc", only=("preference-8",)),
    ),
)
def trl_step(work: Any, turns: Any, defaults: bool = False, autocast: bool = False) -> None:
    """defaults: bfloat16 autocast and gradient checkpointing, as TRL sets them; else neither, or bfloat16 alone."""
    import datasets
    import transformers
    import trl

    from . import torch_models as shared

    class Sequential(trl.DPOTrainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            import torch

            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Wait(transformers.TrainerCallback):
        def on_step_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if turns.begin() is None:
                raise KeyboardInterrupt

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            turns.end()

    shared.autocast_or_leave(defaults or autocast)
    steps = work["steps"]
    own = {} if defaults else {"bf16": autocast, "gradient_checkpointing": False}
    with tempfile.TemporaryDirectory() as folder:
        config = trl.DPOConfig(
            output_dir=folder, per_device_train_batch_size=len(steps[0]), max_steps=len(steps), learning_rate=5e-5,
            max_length=512, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
            precompute_ref_log_probs=work["cached"], **own,
        )  # fmt: skip
        trainer = Sequential(
            shared.base_model(work),
            args=config,
            train_dataset=datasets.Dataset.from_list([record["trl"] for step in steps for record in step]),
            processing_class=transformers.AutoTokenizer.from_pretrained(work["hf"]),
            peft_config=shared.lora_config(work),
            callbacks=[Wait()],
        )
        try:
            trainer.train()
            turns.begin()
        except KeyboardInterrupt:
            pass
