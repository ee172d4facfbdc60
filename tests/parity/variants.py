"""The variants of the model family, as changes to the tiny configuration of peers.TINY."""

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
