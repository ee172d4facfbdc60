"""What the torch contestants share: the same weights in transformers, LoRA on all linear layers, packed batches."""

from __future__ import annotations

from typing import Any

from . import LeftOut


def base_model(work: dict[str, Any], dtype: str = "float32") -> Any:
    """transformers' model of the same weights."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        work["hf"], dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )


def autocast_or_leave(wanted: bool) -> Any:
    """A maker of torch's bfloat16 autocast contexts (idle unless wanted)."""
    import torch

    if wanted and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise LeftOut("torch has no bfloat16 kernels for this processor (its fallback takes minutes a step)")
    return lambda: torch.autocast("cpu", torch.bfloat16, enabled=wanted)


def lora_config(work: dict[str, Any]) -> Any:
    """r 8, alpha 16, on all linear layers but the head, or on those named."""
    import peft

    names = work["targets"]
    targets = "all-linear" if names == "all-linear" else names.split(",")
    return peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")


def lora_model(work: dict[str, Any], dtype: str = "float32") -> Any:
    """The model, its weights of this type, with a fresh adapter or with the one that the work names."""
    import peft

    if work.get("adapter"):
        return peft.PeftModel.from_pretrained(base_model(work, dtype), work["adapter"], is_trainable=True)
    return peft.get_peft_model(base_model(work, dtype), lora_config(work))


class Packed:
    """Sequences one behind the other, without padding: token ids, positions, a block-diagonal causal mask, and the rows
    that are scored with their targets and sequences."""

    def __init__(self, sequences: list[Any], scope: str):
        import torch

        lengths = [len(prompt) + len(response) for prompt, response in sequences]
        self.lengths = lengths
        self.tokens = torch.tensor([[token for prompt, response in sequences for token in (*prompt, *response)]])
        self.positions = torch.cat([torch.arange(length) for length in lengths])[None]
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.mask = ((owner[:, None] == owner[None, :]).tril())[None, None]
        rows, start = [], 0
        for (prompt, _), length in zip(sequences, lengths):
            first = max(len(prompt), 1) if scope == "response" else 1
            rows.append(torch.arange(start + first - 1, start + length - 1))
            start += length
        self.rows = torch.cat(rows)
        self.targets = self.tokens[0, self.rows + 1]
        self.owner = owner[self.rows]
        self.count = len(sequences)


def attend_by_sequence() -> str:
    """Registers, and names, an attention of transformers that runs causal SDPA over each packed sequence apart: no work
    outside the diagonal blocks. The lengths stand in torch_models.LENGTHS."""
    import torch
    import transformers

    def attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any
    ) -> tuple[Any, None]:
        parts = zip(*(tensor.split(LENGTHS, dim=2) for tensor in (query, key, value)))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        outputs = [sdpa(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in parts]
        return torch.cat(outputs, dim=2).transpose(1, 2), None

    transformers.AttentionInterface.register("by_sequence", attention)
    return "by_sequence"


LENGTHS: list[int] = []


def packed_hidden(model: Any, batch: Packed, by_sequence: bool) -> Any:
    """(T, H) final hidden states of the packed batch."""
    LENGTHS[:] = batch.lengths
    inner = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    mask = {"full_attention": None} if by_sequence else batch.mask
    return inner(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=mask, use_cache=False
    ).last_hidden_state[0]


def sequence_logps(model: Any, batch: Packed, by_sequence: bool) -> Any:
    """(N,) log-likelihoods; the head runs at scored rows alone, its log-softmax fused with the gather."""
    import torch

    hidden = packed_hidden(model, batch, by_sequence)[batch.rows]
    head = model.get_base_model().lm_head if hasattr(model, "get_base_model") else model.lm_head
    losses = torch.nn.functional.cross_entropy(head(hidden).float(), batch.targets, reduction="none")
    return torch.zeros(batch.count).index_add(0, batch.owner, -losses)
