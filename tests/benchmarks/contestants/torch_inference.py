"""transformers scoring, prompting and generating."""

from __future__ import annotations

import time
from typing import Any

from . import Variant, contestant

NEEDS = ("torch", "transformers")
DTYPES = (
    Variant("float32"),
    Variant("float32, tcmalloc", allocator="tcmalloc"),
    Variant("bfloat16, tcmalloc", {"bfloat16": True}, "tcmalloc"),
)


def load(work: Any, bfloat16: bool) -> Any:
    """The model in its dtype, eval mode."""
    from . import torch_models as shared

    shared.autocast_or_leave(bfloat16)
    return shared.base_model(work, "bfloat16" if bfloat16 else "float32").eval()


@contestant("transformers", enters=("score-512", "prompt-512"), needs=NEEDS, variants=DTYPES, gigabytes=2)
def transformers_forward(work: Any, turns: Any, bfloat16: bool = False) -> None:
    """Forward of 512 tokens: all scored, or the last row's logits."""
    import torch

    model = load(work, bfloat16)
    ids = torch.tensor([work["ids"]])
    keep = 1 if work["last_only"] else 0

    @torch.inference_mode()
    def repetition(turn: int) -> dict[str, Any] | None:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0]
        if keep:
            return None
        return {"logp": -torch.nn.functional.cross_entropy(logits[:-1].float(), ids[0, 1:], reduction="sum").item()}

    turns.loop(repetition)


@contestant("transformers", enters=("generate-1", "generate-16"), needs=NEEDS, variants=DTYPES, gigabytes=2)
def transformers_generate(work: Any, turns: Any, bfloat16: bool = False) -> None:
    """Tokens after each stream's first, by generate() with its cache."""
    import torch

    model = load(work, bfloat16)
    times: list[float] = []

    def clock(ids: Any, scores: Any) -> Any:
        times.append(time.perf_counter())
        return scores

    ids = torch.tensor([work["prompt_ids"]] * work["streams"])
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0} if work["temperature"] else {"do_sample": False}

    @torch.inference_mode()
    def repetition(turn: int) -> dict[str, Any]:
        times.clear()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=work["new_tokens"],
            min_new_tokens=work["new_tokens"], logits_processor=[clock], pad_token_id=0, **sampling,
        )  # fmt: skip
        return {"seconds": times[-1] - times[0], "units": work["streams"] * (len(times) - 1)}

    turns.loop(repetition)
