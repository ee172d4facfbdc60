"""A model of every family as llama.cpp's convert_hf_to_gguf.py lays it out, written by the gguf package.

Tensor names come from the package's own map, keys from its writer's methods; what a family's converter class does
beside the usual is one row."""

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np

ARCH = gguf.MODEL_ARCH


@dataclass(frozen=True)
class Layout:
    """What one converter class does."""

    arch: gguf.MODEL_ARCH
    permutes: bool = False  # LlamaModel.permute: q and k from two halves a head to neighbouring pairs
    adds_one: bool = False  # Gemma's norms
    transposes: tuple[str, ...] = ()  # GPT-2's Conv1D
    keys: Callable[[gguf.GGUFWriter, dict], None] = lambda writer, hf: None
    extra: Callable[[dict], dict[str, np.ndarray]] = lambda hf: {}  # generate_extra_tensors


def _head_dim(hf):
    return hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]


def _usual(writer, hf):
    """TextModel.set_gguf_parameters."""
    writer.add_block_count(hf["num_hidden_layers"])
    writer.add_context_length(hf["max_position_embeddings"])
    writer.add_embedding_length(hf["hidden_size"])
    writer.add_feed_forward_length(hf["intermediate_size"])
    writer.add_head_count(hf["num_attention_heads"])
    writer.add_head_count_kv(hf["num_key_value_heads"])
    if "rope_theta" in hf:
        writer.add_rope_freq_base(hf["rope_theta"])
    if "layer_norm_eps" in hf:
        writer.add_layer_norm_eps(hf["layer_norm_eps"])
    else:
        writer.add_layer_norm_rms_eps(hf["rms_norm_eps"])
    if "head_dim" in hf:
        writer.add_key_length(hf["head_dim"])
        writer.add_value_length(hf["head_dim"])
    scaling = hf.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _llama(writer, hf):
    writer.add_vocab_size(hf["vocab_size"])
    writer.add_rope_dimension_count(_head_dim(hf))


def _llama_factors(hf):
    """rope_freqs.weight of llama3's scaling, LlamaModel.generate_extra_tensors."""
    scaling = hf.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return {}
    dim, theta = _head_dim(hf), hf["rope_theta"]
    original = scaling["original_max_position_embeddings"]
    low, high = original / scaling["low_freq_factor"], original / scaling["high_freq_factor"]
    factors = []
    for frequency in theta ** -(np.arange(0, dim, 2, dtype=np.float32) / dim):
        wavelength = 2 * np.pi / frequency
        smooth = (original / wavelength - scaling["low_freq_factor"]) / (
            scaling["high_freq_factor"] - scaling["low_freq_factor"]
        )
        between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        factors.append(1.0 if wavelength < high else scaling["factor"] if wavelength > low else between)
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def _granite(writer, hf):
    _llama(writer, hf)
    writer.add_attention_scale(hf["attention_multiplier"])
    writer.add_embedding_scale(hf["embedding_multiplier"])
    writer.add_residual_scale(hf["residual_multiplier"])
    writer.add_logit_scale(hf["logits_scaling"])


def _gemma2(writer, hf):
    writer.add_attn_logit_softcapping(hf["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(hf["final_logit_softcapping"])
    writer.add_sliding_window(hf["sliding_window"])


def _phi3(writer, hf):
    rotated = int(hf.get("partial_rotary_factor", 1.0) * hf["hidden_size"]) // hf["num_attention_heads"]
    original = hf["original_max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(rotated)
    writer.add_sliding_window(hf.get("sliding_window") or 0)
    if hf.get("rope_scaling"):
        scale = hf["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(np.sqrt(1 + np.log(scale) / np.log(original)) if scale > 1 else 1.0)


def _phi3_factors(hf):
    scaling = hf.get("rope_scaling") or {}
    return {
        f"rope_factors_{name}.weight": np.array(scaling[f"{name}_factor"], np.float32)
        for name in ("long", "short")
        if scaling
    }


def _stablelm(writer, hf):
    rotated = int(hf["partial_rotary_factor"] * (hf["hidden_size"] // hf["num_attention_heads"]))
    writer.add_rope_dimension_count(rotated)
    writer.add_parallel_residual(hf["use_parallel_residual"])


def _cohere2(writer, hf):
    writer.add_logit_scale(hf["logit_scale"])
    writer.add_sliding_window(hf["sliding_window"])
    writer.add_vocab_size(hf["vocab_size"])
    writer.add_rope_dimension_count(hf["hidden_size"] // hf["num_attention_heads"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _gpt2(writer, hf):
    writer.add_block_count(hf["n_layer"])
    writer.add_context_length(hf["n_positions"])
    writer.add_embedding_length(hf["n_embd"])
    writer.add_feed_forward_length(4 * hf["n_embd"])
    writer.add_head_count(hf["n_head"])
    writer.add_layer_norm_eps(hf["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


LAYOUTS = {
    "llama": Layout(ARCH.LLAMA, permutes=True, keys=_llama, extra=_llama_factors),
    "mistral": Layout(ARCH.LLAMA, permutes=True, keys=_llama),
    "qwen2": Layout(ARCH.QWEN2),
    "qwen3": Layout(ARCH.QWEN3),
    "gemma2": Layout(ARCH.GEMMA2, adds_one=True, keys=_gemma2),
    "gemma3_text": Layout(ARCH.GEMMA3, adds_one=True, keys=lambda writer, hf: writer.add_sliding_window(hf["sliding_window"])),
    "phi3": Layout(ARCH.PHI3, keys=_phi3, extra=_phi3_factors),
    "granite": Layout(ARCH.GRANITE, permutes=True, keys=_granite),
    "smollm3": Layout(ARCH.SMOLLM3, permutes=True, keys=_llama),
    "olmo2": Layout(ARCH.OLMO2),
    "gpt2": Layout(ARCH.GPT2, transposes=(".c_attn.weight", ".c_proj.weight", ".c_fc.weight"), keys=_gpt2),
    "stablelm": Layout(ARCH.STABLELM, keys=_stablelm),
    "cohere2": Layout(ARCH.COHERE2, keys=_cohere2),
}  # fmt: skip


def _permuted(values, heads):
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def _converted(layout, hf, name, values):
    """modify_tensors of one tensor."""
    if layout.permutes and name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
        heads = hf["num_attention_heads"] if "q_proj" in name else hf["num_key_value_heads"]
        return _permuted(values, heads)
    if layout.adds_one and name.endswith("norm.weight"):
        return values + 1
    return values.T if name.endswith(layout.transposes or ("\0",)) else values


def _vocabulary(writer, tokenizer):
    """Vocab "gpt2" with the merges of a byte-level tokenizer."""
    import json

    model = json.loads(tokenizer.backend.to_str())["model"]
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def convert(path, hf, values, tokenizer):
    """Write the model of a config.json dictionary with these values by Hugging Face name."""
    layout = LAYOUTS[hf["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[layout.arch])
    if hf["model_type"] != "gpt2":
        _usual(writer, hf)
    layout.keys(writer, hf)
    _vocabulary(writer, tokenizer)
    names = gguf.get_tensor_name_map(layout.arch, hf.get("num_hidden_layers") or hf["n_layer"])
    for name, tensor in layout.extra(hf).items():
        writer.add_tensor(name, tensor)
    for name, tensor in values.items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new, f"the gguf package has no name for {name}"
        writer.add_tensor(new, np.ascontiguousarray(_converted(layout, hf, name, np.asarray(tensor, np.float32))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
