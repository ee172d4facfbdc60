"""The same model in transformers and here, and the same numbers asked of both.

Models are built from a configuration and an array of values by name, never fetched. Attention is transformers' "eager",
in float32 (float64 where asked), so that the peer's own rounding stays below the tolerances.
"""

import numpy as np
import torch
import transformers

from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize, tensor_shapes
from jpo.formats.peft import AdapterConfig, write_adapter

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

TINY = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_values(config, seed=0):
    """Hugging Face name -> float32: wide enough that the softmax is far from uniform and every term matters."""
    random = np.random.default_rng(seed)
    values = {}
    for name, shape in tensor_shapes(config).items():
        if "norm" in name:
            values[name] = (1 + 0.2 * random.standard_normal(shape)).astype(np.float32)
        elif len(shape) == 1:
            values[name] = (0.2 * random.standard_normal(shape)).astype(np.float32)
        else:
            values[name] = (random.standard_normal(shape) / np.sqrt(shape[1]) * 1.2).astype(np.float32)
    return values


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


def write_random(folder, seed=0, **changes):
    """A directory with a random model of TINY with `changes`; (config.json dictionary, values)."""
    hf = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
    config = normalize("random", hf)
    values = random_values(config, seed)
    write_checkpoint(folder, config, values, load_checkpoint("tiny").tokenizer)
    return hf, values


def smollm2_values(checkpoint):
    """Every tensor of the installed SmolLM2 widened to float32."""
    return {name: tensor.float32() for name, tensor in checkpoint.tensors.items()}


def adapter_of(folder, values, seed=1, modules=MODULES, r=4, base=None, scale=0.1):
    """A saved adapter whose A and B are both nonzero."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, value in values.items():
        if any(f".{module}.weight" in name for module in modules):
            stem = "base_model.model." + name.removesuffix(".weight")
            outputs, inputs = value.shape
            tensors[f"{stem}.lora_A.weight"] = (random.standard_normal((r, inputs)) / np.sqrt(inputs)).astype(
                np.float32
            )
            tensors[f"{stem}.lora_B.weight"] = (scale * random.standard_normal((outputs, r))).astype(np.float32)
    write_adapter(folder, AdapterConfig(r, 2 * r, 0.0, tuple(modules), False, base, {}), tensors)


def token_logps(model, ids):
    """log p of each token of `ids` after the first, as a float64 tensor that carries gradients."""
    tokens = torch.tensor([list(ids)])
    logits = model(input_ids=tokens).logits[0, :-1].double()
    return torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None])[:, 0]


def sequence_logp(model, prompt, response, scope):
    """The sum over the response's tokens, or over all but the first of the sequence (joint)."""
    values = token_logps(model, (*prompt, *response))
    return values.sum() if scope == "joint" else values[len(prompt) - 1 :].sum()


def sequences(vocabulary, seed=0, shapes=((9, 12), (7, 20), (15, 5))):
    """Pairs (prompt, response) of random ids; each prompt has two responses, so that the forest shares it."""
    random = np.random.default_rng(seed)
    result = []
    for prompt_length, response_length in shapes:
        prompt = tuple(int(i) for i in random.integers(3, vocabulary, prompt_length))
        for extra in (0, 3):
            response = tuple(int(i) for i in random.integers(3, vocabulary, response_length + extra))
            result.append((prompt, response))
    return result


def relative(ours, theirs):
    """||ours - theirs|| / ||theirs|| in float64."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))
