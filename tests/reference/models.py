"""Random models of every variant of the family, their adapters and sequences: written as a user would have them."""

import numpy as np

from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize
from jpo.formats.peft import AdapterConfig, write_adapter
from jpo.formats.tensors import tensor_shapes

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
LINEAR = {"rope_type": "linear", "factor": 2.5}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "one-kv-head": {"num_key_value_heads": 1},
    "full-heads": {"num_key_value_heads": 4},
    "eight-groups": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 4},
    "wide-heads": {"head_dim": 24},
    "attention-bias": {"attention_bias": True},
    "all-biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral-window": {"model_type": "mistral", "sliding_window": 6, "attention_bias": None, "mlp_bias": None},
    "rope-linear": {"rope_scaling": LINEAR},
    "rope-llama3": {"rope_scaling": LLAMA3},
    "rope-yarn": {"rope_scaling": YARN},
    "odd-sizes": {"hidden_size": 36, "intermediate_size": 52, "head_dim": 6, "num_attention_heads": 6},
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


def write_random(folder, seed=0, tokenizer=None, **changes):
    """A directory with a random model of TINY with `changes` and a tokenizer (default: that of "tiny"); (config.json
    dictionary, values)."""
    hf = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
    config = normalize("random", hf)
    values = random_values(config, seed)
    write_checkpoint(folder, config, values, tokenizer or load_checkpoint("tiny").tokenizer)
    return hf, values


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
