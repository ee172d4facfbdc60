"""Tiny configurations of every family, two shapes each: tied or not, few or many heads, more layers than a period."""

import copy

SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
OTHER = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 6, "num_key_value_heads": 3}
UNTIED = {"tie_word_embeddings": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.5],
    "long_factor": [1.0, 2.0, 4.0],
}

# name -> (model_type, changes to SIZES); None drops a key
FAMILIES = {
    "qwen2": ("qwen2", {}),
    "qwen2-window": (
        "qwen2",
        {**OTHER, **UNTIED, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 10}),
    "qwen3-bias": ("qwen3", {**OTHER, **UNTIED, "head_dim": 16, "attention_bias": True}),
    "gemma3": ("gemma3_text", {"head_dim": 10, "num_hidden_layers": 7, "sliding_window": 6, "query_pre_attn_scalar": 9}),
    "gemma3-scaled": (
        "gemma3_text",
        {
            **OTHER, **UNTIED, "head_dim": 8, "num_key_value_heads": 1, "sliding_window": 5, "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "attention_bias": True,
        },
    ),
    "gemma2": ("gemma2", {"head_dim": 10, "sliding_window": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2-plain": ("gemma2", {**OTHER, **UNTIED, "head_dim": 6, "sliding_window": 9, "attn_logit_softcapping": None, "final_logit_softcapping": 30.0, "num_hidden_layers": 4}),
    "phi3": ("phi3", {"num_attention_heads": 4, "partial_rotary_factor": 0.75}),
    "phi3-beyond": ("phi3", {"num_attention_heads": 2, "num_key_value_heads": 1, "original_max_position_embeddings": 12, "partial_rotary_factor": 0.375, "rope_scaling": LONGROPE}),
    "phi3-long": ("phi3", {**OTHER, "head_dim": 6, **UNTIED, "sliding_window": 9, "original_max_position_embeddings": 64, "rope_scaling": LONGROPE}),
    "granite": ("granite", {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.5}),
    "granite-bias": ("granite", {**OTHER, **UNTIED, "attention_bias": True, "mlp_bias": True, "residual_multiplier": 1.3}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3-window": ("smollm3", {**OTHER, **UNTIED, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True, "sliding_window": 6, "attention_bias": True}),
    "olmo2": ("olmo2", {}),
    "olmo2-bias": ("olmo2", {**OTHER, **UNTIED, "attention_bias": True}),
    "ministral": ("ministral", {"sliding_window": 6, "head_dim": 10, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "ministral-yarn": ("ministral", {**OTHER, **UNTIED, "head_dim": 6, "sliding_window": 9, "layer_types": ["full_attention"] * 3, "rope_scaling": YARN}),
    "mistral-yarn": ("mistral", {**OTHER, **UNTIED, "sliding_window": None, "head_dim": 10, "rope_scaling": YARN}),
    "llama3": ("llama", {"head_dim": 10, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
    "gpt2": ("gpt2", {}),
    "gpt2-odd": ("gpt2", {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 44, **UNTIED, "scale_attn_weights": False}),
    "stablelm": ("stablelm", {"num_attention_heads": 4, "use_qkv_bias": True, "hidden_size": 64}),
    "stablelm-parallel": ("stablelm", {**OTHER, **UNTIED, "partial_rotary_factor": 0.67, "use_parallel_residual": True}),
    "cohere2": ("cohere2", {"num_hidden_layers": 5, "sliding_window": 6, "logit_scale": 0.3}),
    "cohere2-bias": ("cohere2", {**OTHER, **UNTIED, "attention_bias": True, "sliding_window": 9, "logit_scale": 1.5}),
}  # fmt: skip
_GPT2 = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "num_key_value_heads": None,
}  # fmt: skip


def configuration(name):
    """config.json of the named case."""
    kind, changes = FAMILIES[name]
    changes = copy.deepcopy(changes)  # transformers writes into what it is given
    config = {"model_type": kind, **{key: value for key, value in {**SIZES, **changes}.items()}}
    if kind == "gpt2":
        config = {_GPT2.get(key, key): value for key, value in config.items() if _GPT2.get(key, key)}
    return config
