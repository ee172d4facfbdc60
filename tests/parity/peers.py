"""The same model in transformers and here, and the same numbers asked of both.

Models are built from a configuration and an array of values by name, never fetched. Attention is transformers' "eager",
in float32 (float64 where asked), so that the peer's own rounding stays below the tolerances.
"""

import numpy as np
import torch
import transformers

# of a training step, under the names that TRL and jpo share
METRICS = [
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
]


def peer_of(hf, values, dtype=torch.float32):
    """LlamaForCausalLM or MistralForCausalLM of a config.json dictionary with these values, in eval mode."""
    kind = "Mistral" if hf["model_type"] == "mistral" else "Llama"
    keys = {
        key: value for key, value in hf.items() if key not in ("model_type", "architectures", "torch_dtype", "dtype")
    }
    config = getattr(transformers, f"{kind}Config")(**keys, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype)
    state = {name: torch.from_numpy(np.array(value, np.float32)).to(dtype) for name, value in values.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def smollm2_values(checkpoint):
    """Every tensor of the installed SmolLM2 widened to float32."""
    return {name: tensor.float32() for name, tensor in checkpoint.tensors.items()}


def token_logps(model, ids):
    """log p of each token of `ids` after the first, as a float64 tensor that carries gradients."""
    tokens = torch.tensor([list(ids)])
    logits = model(input_ids=tokens).logits[0, :-1].double()
    return torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None])[:, 0]


def sequence_logp(model, prompt, response, scope):
    """The sum over the response's tokens, or over all but the first of the sequence (joint)."""
    values = token_logps(model, (*prompt, *response))
    return values.sum() if scope == "joint" else values[len(prompt) - 1 :].sum()
