"""Builds model files byte by byte for the tests of formats: GGUF, safetensors, Hugging Face directories, adapters.

Written from the formats' descriptions and apart from jpo's readers and writers, so that a mistake is not made twice.
"""

import json
import os
import struct

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
GGML = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
}  # fmt: skip


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(kind, value):
    """A metadata value: kind is a number above, or (ARRAY, element kind)."""
    if isinstance(kind, tuple):
        items = b"".join(typed(kind[1], item)[4:] for item in value)
        return struct.pack("<IIQ", ARRAY, kind[1], len(value)) + items
    if kind == STRING:
        return struct.pack("<I", kind) + text(value)
    return struct.pack("<I" + _PACK[kind], kind, value)


def quantize(values, dtype):
    """float32 (N, K) -> the bytes of `dtype` (uint8, 1-D) by the plainest rule; also what they stand for."""
    values = np.asarray(values, np.float32)
    if dtype == "F32":
        return values.reshape(-1).view(np.uint8), values
    if dtype == "F16":
        half = values.astype("<f2")
        return half.reshape(-1).view(np.uint8), half.astype(np.float32)
    if dtype == "BF16":
        bits = (values.view(np.uint32) >> 16).astype("<u2")
        return bits.reshape(-1).view(np.uint8), (bits.astype(np.uint32) << 16).view(np.float32)
    blocks = values.reshape(-1, 32)
    if dtype == "Q8_0":
        scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
        steps = np.round(blocks / np.maximum(scale.astype(np.float32), 1e-8)).clip(-127, 127).astype(np.int8)
        raw = np.concatenate([scale.view(np.uint8), steps.view(np.uint8)], 1)
        return raw.reshape(-1), (scale.astype(np.float32) * steps).reshape(values.shape)
    low = blocks.min(1, keepdims=True)
    scale = ((blocks.max(1, keepdims=True) - low) / 15).astype("<f2")
    if dtype == "Q4_0":
        low = -8 * scale.astype(np.float32)
    base = low.astype("<f2")
    steps = np.round((blocks - low) / np.maximum(scale.astype(np.float32), 1e-8)).clip(0, 15).astype(np.uint8)
    packed = steps[:, :16] | (steps[:, 16:] << 4)
    heads = [scale.view(np.uint8)] + ([base.view(np.uint8)] if dtype == "Q4_1" else [])
    start = base.astype(np.float32) if dtype == "Q4_1" else low
    return np.concatenate([*heads, packed], 1).reshape(-1), (scale.astype(np.float32) * steps + start).reshape(
        values.shape
    )


def gguf_bytes(metadata, tensors, *, version=3, alignment=32, magic=b"GGUF", counts=None, places=None):
    """A GGUF file. metadata: list of (key, kind, value) or raw bytes; tensors: list of (name, dims, type, bytes).

    dims as stored: the contiguous axis first. `places` overrides offsets by tensor name, `counts` the header's
    (tensors, metadata) counts.
    """
    head = b"".join(entry if isinstance(entry, bytes) else text(entry[0]) + typed(*entry[1:]) for entry in metadata)
    infos, data = b"", b""
    for name, dims, kind, raw in tensors:
        data += b"\0" * (-len(data) % alignment)
        offset = (places or {}).get(name, len(data))
        infos += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        data += bytes(raw)
    n_tensors, n_metadata = counts or (len(tensors), len(metadata))
    start = magic + struct.pack("<IQQ", version, n_tensors, n_metadata) + head + infos
    return start + b"\0" * (-len(start) % alignment) + data


SHAPE = {"hidden": 64, "inner": 96, "layers": 2, "heads": 4, "kv": 2, "head_dim": 16, "vocab": 272}
BYTE_LEVEL = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]


def byte_vocabulary():
    """(tokens, types, merges): three control tokens, the 256 bytes, some merges, padded to SHAPE's vocabulary."""
    merges = ["h e", "l l", "he ll", "\u0120 w", "o r", "\u0120w or", "1 2", "\u0120 \u0120"]
    tokens = ["<|end|>", "<|bos|>", "<think>", *BYTE_LEVEL, *(merge.replace(" ", "") for merge in merges)]
    types = [3, 3, 4] + [1] * (len(tokens) - 3)
    while len(tokens) < SHAPE["vocab"]:
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(5)
    return tokens, types, merges


def llama_metadata(**changes):
    """Metadata of a small llama file; changes replace or (None) drop entries, by key with '.' written as '__'."""
    tokens, types, merges = byte_vocabulary()
    entries = {
        "general.architecture": (STRING, "llama"),
        "llama.context_length": (U32, 128),
        "llama.embedding_length": (U32, SHAPE["hidden"]),
        "llama.block_count": (U32, SHAPE["layers"]),
        "llama.feed_forward_length": (U32, SHAPE["inner"]),
        "llama.attention.head_count": (U32, SHAPE["heads"]),
        "llama.attention.head_count_kv": (U32, SHAPE["kv"]),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.freq_base": (F32, 10000.0),
        "llama.rope.dimension_count": (U32, SHAPE["head_dim"]),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "smollm"),
        "tokenizer.ggml.tokens": ((ARRAY, STRING), tokens),
        "tokenizer.ggml.token_type": ((ARRAY, I32), types),
        "tokenizer.ggml.merges": ((ARRAY, STRING), merges),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 0),
    }
    for key, value in changes.items():
        key = key.replace("__", ".")
        entries.pop(key, None)
        if value is not None:
            entries[key] = value
    return [(key, *value) for key, value in entries.items()]


def llama_weights(seed=0, tied=False, bias=False):
    """Hugging Face name -> float32 array of the model that llama_metadata describes."""
    random = np.random.default_rng(seed)
    hidden, inner, query = SHAPE["hidden"], SHAPE["inner"], SHAPE["heads"] * SHAPE["head_dim"]
    key = SHAPE["kv"] * SHAPE["head_dim"]
    shapes = {"model.embed_tokens.weight": (SHAPE["vocab"], hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (SHAPE["vocab"], hidden)
    for layer in range(SHAPE["layers"]):
        start = f"model.layers.{layer}."
        rows = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
        for name, shape in rows.items():
            shapes[f"{start}self_attn.{name}_proj.weight"] = shape
            if bias:
                shapes[f"{start}self_attn.{name}_proj.bias"] = shape[:1]
        for name, shape in {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}.items():
            shapes[f"{start}mlp.{name}_proj.weight"] = shape
        shapes[f"{start}input_layernorm.weight"] = shapes[f"{start}post_attention_layernorm.weight"] = (hidden,)
    return {name: random.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}


_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed or name == "lm_head.weight":
        return fixed.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    middle, part = rest.rsplit(".", 1)
    return f"blk.{layer}.{_GGUF_NAMES[middle]}.{part}"


def interleaved(values, heads):
    """Rows in GGUF's order: within a head, Hugging Face's row j*half + i stands at 2*i + j."""
    size = len(values) // heads
    result = np.empty_like(values)
    for head in range(heads):
        for j in range(2):
            for i in range(size // 2):
                result[head * size + 2 * i + j] = values[head * size + j * (size // 2) + i]
    return result


def gguf_tensors(weights, dtype="F32"):
    """(tensors for gguf_bytes, Hugging Face name -> the values that they stand for); vectors stay F32."""
    tensors, meant = [], {}
    for name, values in weights.items():
        kind = dtype if values.ndim == 2 else "F32"
        heads = {"q_proj": SHAPE["heads"], "k_proj": SHAPE["kv"]}.get(name.split(".")[-2])
        raw, _ = quantize(interleaved(values, heads) if heads else values, kind)
        _, meant[name] = quantize(values, kind)
        tensors.append((gguf_name(name), values.shape[::-1], GGML[kind], raw.tobytes()))
    return tensors, meant


def write_gguf(path, weights=None, dtype="F32", metadata=None, **options):
    """A whole small llama file at `path`; returns the values by Hugging Face name."""
    tensors, meant = gguf_tensors(llama_weights() if weights is None else weights, dtype)
    with open(path, "wb") as file:
        file.write(gguf_bytes(llama_metadata() if metadata is None else metadata, tensors, **options))
    return meant


def safetensors_bytes(tensors, header=None, length=None):
    """A safetensors file of {name: (dtype, array)}; `header` replaces the JSON text, `length` its stated length."""
    entries, data = {}, b""
    for name, (dtype, values) in tensors.items():
        raw = quantize(values, dtype)[0].tobytes()
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    body = (json.dumps(entries) if header is None else header).encode()
    body += b" " * (-len(body) % 8)
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def hf_config(**changes):
    """config.json of the same small model; a change to None drops the key."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": SHAPE["vocab"],
        "hidden_size": SHAPE["hidden"], "intermediate_size": SHAPE["inner"], "num_hidden_layers": SHAPE["layers"],
        "num_attention_heads": SHAPE["heads"], "num_key_value_heads": SHAPE["kv"], "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 0, "attention_bias": False, "mlp_bias": False, "use_cache": True,
    }  # fmt: skip
    config.update(changes)
    return {key: value for key, value in config.items() if value is not None}


def tokenizer_json():
    tokens, _, merges = byte_vocabulary()
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": tokens[i], **added, "special": i < 2} for i in range(3)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }  # fmt: skip


def write_directory(folder, weights=None, dtype="F32", config=None, shards=1):
    """A Hugging Face directory; returns the values by name."""
    weights = llama_weights() if weights is None else weights
    os.makedirs(folder, exist_ok=True)
    files = {
        "config.json": hf_config() if config is None else config,
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": {"bos_token": "<|bos|>", "eos_token": {"content": "<|end|>"}, "chat_template": "old"},
        "generation_config.json": {"eos_token_id": [0, 2]},
    }
    names, places = list(weights), {}
    for shard in range(shards):
        part = names[shard::shards]
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        places.update(dict.fromkeys(part, file))
        with open(os.path.join(folder, file), "wb") as stream:
            stream.write(safetensors_bytes({name: (dtype, weights[name]) for name in part}))
    if shards > 1:
        files["model.safetensors.index.json"] = {"metadata": {}, "weight_map": places}
    for name, value in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as stream:
            json.dump(value, stream)
    return {name: quantize(value, dtype)[1] for name, value in weights.items()}


def adapter_config(**changes):
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "use_rslora": False, "peft_version": "0.21.0", "inference_mode": True,
    }  # fmt: skip
    return {**config, **changes}


def adapter_tensors(modules=("q_proj", "v_proj"), layers=2, r=4, seed=0):
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module in modules:
            part = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            start = f"base_model.model.model.layers.{layer}.{part}."
            tensors[f"{start}{module}.lora_A.weight"] = random.standard_normal((r, 64)).astype(np.float32)
            tensors[f"{start}{module}.lora_B.weight"] = random.standard_normal((32, r)).astype(np.float32)
    return tensors


def write_adapter_files(folder, config=None, tensors=None, dtype="F32"):
    os.makedirs(folder, exist_ok=True)
    tensors = adapter_tensors() if tensors is None else tensors
    with open(os.path.join(folder, "adapter_model.safetensors"), "wb") as file:
        file.write(safetensors_bytes({name: (dtype, value) for name, value in tensors.items()}))
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
        json.dump(adapter_config() if config is None else config, file)
    return tensors
