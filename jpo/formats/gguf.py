"""GGUF files: a bounds-checked reader over a memory map, and the llama architecture in Hugging Face's names and order.

Every count, length and offset is checked against the file before it is used, so a malformed file costs an error and
never a large allocation. Knows the container (versions 2 and 3) and llama's metadata keys; the tokenizer inside
is built by jpo.formats.gguf_tokenizer. Container: the GGUF specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpo.errors import FormatError
from jpo.formats.config import integer, normalize, number
from jpo.formats.files import check_tensors, open_regular
from jpo.formats.gguf_tokenizer import tokenizer_from_metadata
from jpo.formats.stored import Checkpoint, StoredTensor, aligned, tensor_bytes

_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16",
}  # fmt: skip
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
# metadata value type -> NumPy's little-endian dtype; 8 is a string, 9 an array
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9

# llama.* keys that the reader uses or that change nothing; any other key is refused unless it is zero, false or empty
_KNOWN_KEYS = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scale_linear",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "tensor_data_layout",
    "rope.scaling.yarn_ext_factor",
}  # fmt: skip
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass
class GGUFFile:
    """Metadata (str, int, float, bool, list of str or NumPy array by key) and tensors under their GGUF names."""

    path: str
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


class _Cursor:
    """A position in the mapped file that refuses to pass its end."""

    def __init__(self, path: str, data: mmap.mmap):
        self.path, self.data, self.position, self.size = path, data, 0, len(data)

    def fail(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}")

    def take(self, count: int, what: str) -> int:
        """Start of the next `count` bytes; moves past them."""
        start = self.position
        if count > self.size - start:
            raise self.fail(f"{what}: {count} bytes at offset {start} pass the end of the file ({self.size} bytes)")
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        return struct.unpack_from("<I", self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return struct.unpack_from("<Q", self.data, self.take(8, what))[0]

    def text(self, what: str) -> str:
        length = self.u64(what)
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what}: not valid UTF-8 at offset {start} ({error.reason})") from None

    def texts(self, count: int, what: str) -> list[str]:
        """`count` strings; the inner loop of loading a vocabulary, so without a call per string."""
        if count > (self.size - self.position) // 8:
            raise self.fail(f"{what}: {count} strings do not fit into the rest of the file")
        data, position, size, unpack = self.data, self.position, self.size, struct.Struct("<Q").unpack_from
        result = []
        for index in range(count):
            if size - position < 8:
                raise self.fail(f"{what}[{index}]: the file ends within the string's length")
            end = position + 8 + unpack(data, position)[0]
            if end > size:
                raise self.fail(f"{what}[{index}]: {end - position - 8} bytes pass the end of the file ({size} bytes)")
            result.append(data[position + 8 : end])
            position = end
        self.position = position
        try:
            return [entry.decode("utf-8") for entry in result]
        except UnicodeDecodeError as error:
            raise self.fail(f"{what}: a string is not valid UTF-8 ({error.reason})") from None

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            raise self.fail(f"{what}: unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.data, dtype, 1, self.take(dtype.itemsize, what))[0].item()

    def array(self, what: str) -> list[str] | np.ndarray:
        kind, count = self.u32(what), self.u64(what)
        if kind == _STRING:
            return self.texts(count, what)
        if kind not in _SCALARS:
            raise self.fail(f"{what}: arrays of value type {kind} are not supported")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize, what)).copy()


def _map(path: str) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise FormatError(f"{path}: {os.fstat(file.fileno()).st_size} bytes are too few for a GGUF header (24)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def _header(cursor: _Cursor) -> tuple[int, int, int]:
    """(version, tensors, metadata entries)"""
    magic = cursor.data[cursor.take(4, "magic") : 4]
    if magic != b"GGUF":
        raise cursor.fail(f"not a GGUF file: begins with {magic!r}, expected b'GGUF'")
    version = cursor.u32("version")
    if version not in (2, 3):
        hint = " (written on a big-endian machine)" if version and not version & 0xFFFF else ""
        raise cursor.fail(f"GGUF version {version}{hint} is not supported; expected 2 or 3, little-endian")
    tensors, entries = cursor.u64("tensor count"), cursor.u64("metadata count")
    room = cursor.size - cursor.position  # the smallest entry takes 13 bytes, the smallest tensor 32
    if entries > room // 13 or tensors > room // 24:
        raise cursor.fail(f"{entries} metadata entries and {tensors} tensors cannot fit into {cursor.size} bytes")
    return version, tensors, entries


def _tensor_info(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    """(name, type, shape with the contiguous axis last, offset from the start of the data)"""
    name = cursor.text("tensor name")
    rank = cursor.u32(f"tensor {name}: rank")
    if not 1 <= rank <= 4:
        raise cursor.fail(f"tensor {name}: rank {rank} is not supported; expected 1 to 4")
    shape = struct.unpack_from(f"<{rank}Q", cursor.data, cursor.take(8 * rank, f"tensor {name}: shape"))[::-1]
    return name, cursor.u32(f"tensor {name}: type"), shape, cursor.u64(f"tensor {name}: offset")


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 20 or value & (value - 1):
        raise cursor.fail(f"general.alignment: expected a power of two up to 2^20, got {value!r}")
    return value


def _refuse_overlaps(cursor: _Cursor, places: dict[str, tuple[str, tuple[int, ...], int, int]]) -> None:
    """Two tensors on the same bytes: a small file would stand for any amount of memory."""
    before, reached = "", 0
    for name, (_, _, first, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first < reached:
            raise cursor.fail(f"tensor {name}: its bytes from offset {first} on overlap those of tensor {before}")
        before, reached = name, end


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Metadata and memory-mapped tensors of a GGUF file; FormatError names file and key or tensor."""
    path = os.fspath(path)
    data = _map(path)
    cursor = _Cursor(path, data)
    version, count, entries = _header(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text("metadata key")
        if key in metadata:
            raise cursor.fail(f"metadata key {key} stands twice")
        metadata[key] = cursor.value(cursor.u32(f"metadata key {key}: type"), f"metadata key {key}")
    infos = [_tensor_info(cursor) for _ in range(count)]
    alignment = _alignment(cursor, metadata)
    start = -(-cursor.position // alignment) * alignment
    whole = np.frombuffer(data, np.uint8)
    places: dict[str, tuple[str, tuple[int, ...], int, int]] = {}  # dtype, shape, first byte, behind the last
    for name, kind, shape, offset in infos:
        if name in places:
            raise cursor.fail(f"tensor {name} stands twice")
        if kind not in _TYPES:
            raise cursor.fail(
                f"tensor {name}: type {_OTHER_TYPES.get(kind, kind)} is not implemented; "
                f"convert the file to one of {', '.join(_TYPES.values())} (llama-quantize)"
            )
        if offset % alignment:
            raise cursor.fail(f"tensor {name}: offset {offset} is no multiple of the alignment {alignment}")
        size = tensor_bytes(path, name, _TYPES[kind], shape)
        if offset > len(whole) - start or size > len(whole) - start - offset:
            raise cursor.fail(f"tensor {name}: {size} bytes at data offset {offset} pass the end of the file")
        places[name] = _TYPES[kind], shape, start + offset, start + offset + size
    _refuse_overlaps(cursor, places)
    tensors = {
        name: StoredTensor(name, dtype, shape, aligned(whole[first:end], dtype))
        for name, (dtype, shape, first, end) in places.items()
    }
    return GGUFFile(path, version, metadata, tensors)


def _uniform(file: GGUFFile, key: str) -> Any:
    """A metadata value that may also stand once per layer, then equal in all."""
    value = file.metadata.get(key)
    if isinstance(value, list):
        raise FormatError(f"{file.path}: metadata key {key}: expected a number, got an array of strings")
    if isinstance(value, np.ndarray):
        if not value.size or (value != value[0]).any():
            raise FormatError(f"{file.path}: metadata key {key}: layers that differ are not implemented")
        return value[0].item()
    return value


def _refuse_unknown(file: GGUFFile) -> None:
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise FormatError(
            f"{file.path}: split.count = {file.metadata['split.count']}: join the parts (llama-gguf-split --merge)"
        )
    for key, value in file.metadata.items():
        if not key.startswith("llama.") or key[6:] in _KNOWN_KEYS:
            continue
        if key in ("llama.attention.causal",) and value is True:
            continue
        empty = not np.any(value) if isinstance(value, (np.ndarray, int, float)) else not value
        if not empty:
            raise FormatError(
                f"{file.path}: metadata key {key} = {value!r} changes the mathematics and is not implemented"
            )


def _rope_scaling(where: str, flat: dict[str, Any]) -> dict[str, Any] | None:
    """RoPE's scaling in Hugging Face's spelling, from the llama.* entries."""
    factor = number(where, flat, "rope.scaling.factor", number(where, flat, "rope.scale_linear", 1.0))
    kind = flat.get("rope.scaling.type")
    if kind is None:
        kind = "none" if factor == 1.0 else "linear"
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind not in ("linear", "yarn"):
        raise FormatError(f"{where}: metadata key llama.rope.scaling.type = {kind!r} is not implemented")
    scaling: dict[str, Any] = {"rope_type": kind, "type": kind, "factor": factor}
    if kind == "linear":
        return scaling
    original = integer(where, flat, "rope.scaling.original_context_length", 0, least=0)
    if original:
        scaling["original_max_position_embeddings"] = original
    for name in ("beta_fast", "beta_slow"):
        if flat.get(f"rope.scaling.yarn_{name}", -1.0) != -1.0:  # -1: unset, as llama.cpp writes it
            scaling[name] = number(where, flat, f"rope.scaling.yarn_{name}", 1.0)
    if flat.get("rope.scaling.yarn_ext_factor", -1.0) not in (-1.0, 1.0):
        raise FormatError(f"{where}: metadata key llama.rope.scaling.yarn_ext_factor is not implemented")
    extra = number(where, flat, "rope.scaling.attn_factor", number(where, flat, "rope.scaling.yarn_attn_factor", 1.0))
    if extra != 1.0:  # llama.cpp multiplies it onto YaRN's own
        scaling["attention_factor"] = extra * (0.1 * float(np.log(max(factor, 1.0))) + 1.0)
    return scaling


def _llama3_scaling(file: GGUFFile, theta: float, head_dim: int, factors: np.ndarray) -> dict[str, Any] | None:
    """The llama3 scaling whose factors stand in rope_freqs.weight, or None where no usual one gives them.

    llama.cpp stores only the divisors; configurations written for Hugging Face need the parameters back.
    """
    base = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    original, low, high = 8192.0, 1.0, 4.0
    factor = float(factors.max())
    if factor <= 1:
        return None
    wavelength = 2 * np.pi / base
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-5):
        return None
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": int(original),
    }  # fmt: skip


def _token_id(file: GGUFFile, name: str) -> Any:
    """tokenizer.ggml.{name}_token_id, old converters' 2^32-1 being none."""
    value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return None if isinstance(value, int) and value == 0xFFFFFFFF else value


def _hugging_face_config(file: GGUFFile) -> tuple[dict[str, Any], np.ndarray | None]:
    """(the configuration in Hugging Face's spelling, factors of rope_freqs.weight that it cannot spell or None)"""
    where, get = file.path, file.metadata.get
    if not isinstance(get("general.architecture"), str) or get("general.architecture") != "llama":
        raise FormatError(
            f"{where}: general.architecture {get('general.architecture')!r} is not implemented; expected 'llama'"
        )
    _refuse_unknown(file)
    flat = {key[6:]: _uniform(file, key) for key in file.metadata if key.startswith("llama.")}
    heads, hidden = integer(where, flat, "attention.head_count"), integer(where, flat, "embedding_length")
    head_dim = integer(where, flat, "attention.key_length", hidden // heads or None)
    for key in ("attention.value_length", "rope.dimension_count"):
        if integer(where, flat, key, head_dim) != head_dim:
            raise FormatError(
                f"{where}: metadata key llama.{key}: only the head size {head_dim} is implemented, got {flat[key]}"
            )
    window = integer(where, flat, "attention.sliding_window", 0, least=0)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(f"{where}: tensor token_embd.weight is missing")
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "model_type": "mistral" if window else "llama",
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": integer(where, flat, "feed_forward_length"),
        "num_hidden_layers": integer(where, flat, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": integer(where, flat, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": number(where, flat, "attention.layer_norm_rms_epsilon", 1e-5),
        "max_position_embeddings": integer(where, flat, "context_length"),
        "rope_theta": number(where, flat, "rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": _token_id(file, "bos"),
        "eos_token_id": _token_id(file, "eos"),
    }
    config["sliding_window" if window else "attention_bias"] = window or "blk.0.attn_q.bias" in file.tensors
    if not window:
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    config["rope_scaling"] = _rope_scaling(where, flat)
    stored = file.tensors.get("rope_freqs.weight")
    if stored is None:
        return config, None
    factors = stored.float32().astype(np.float64).ravel()
    if stored.dtype != "F32" or not np.isfinite(factors).all() or not (factors > 0).all():
        raise FormatError(f"{where}: tensor rope_freqs.weight: expected finite F32 factors above 0")
    if config["rope_scaling"] is None and len(factors) == head_dim // 2:
        config["rope_scaling"] = _llama3_scaling(file, config["rope_theta"], head_dim, factors)
        if config["rope_scaling"]:
            return config, None
    if np.all(factors == 1.0) and len(factors) == head_dim // 2:
        return config, None
    config["jpo_rope_factors"] = (
        factors.tolist()
    )  # a configuration that transformers cannot read: writing it is refused
    return config, factors


def _halves_apart(tensor: StoredTensor, name: str, heads: int) -> StoredTensor:
    """Rows of a q or k matrix (or bias) from interleaved rotary pairs to Hugging Face's two halves a head.

    The file's row (head, pair i, half j) is Hugging Face's (head, j, i). Whole rows move, so blocks stay whole.
    """
    rows, width = tensor.shape[0], tensor.data.size // tensor.shape[0]
    pairs = tensor.data.reshape(heads, rows // heads // 2, 2, width)
    data = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)
    return StoredTensor(name, tensor.dtype, tensor.shape, data)


def _rename(where: str, name: str) -> str | None:
    """Hugging Face's name of a GGUF tensor; None for those that become part of the configuration."""
    if name == "rope_freqs.weight":
        return None
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isascii() and parts[1].isdigit() and parts[2] in _LAYER_NAMES:
        return f"model.layers.{int(parts[1])}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 4 and parts[2] == "attn_rot_embd":  # frequencies that old converters stored; derived here
        return None
    raise FormatError(f"{where}: tensor {name}: no such tensor in the llama architecture as implemented")


def load_gguf(path: str | os.PathLike[str], source: str | None = None) -> Checkpoint:
    """A llama-architecture GGUF file as a Checkpoint with Hugging Face's names and row order."""
    file = read_gguf(path)
    hf, factors = _hugging_face_config(file)
    config = normalize(file.path, hf, rope_factors=factors)
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in file.tensors.items():
        new = _rename(file.path, name)
        if new is not None:
            renamed[new] = StoredTensor(new, tensor.dtype, tensor.shape, tensor.data)
    check_tensors(file.path, config, renamed)
    for layer in range(config["num_hidden_layers"]):
        for matrix, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
            for part in ("weight", "bias"):
                name = f"model.layers.{layer}.self_attn.{matrix}_proj.{part}"
                if name in renamed:
                    renamed[name] = _halves_apart(renamed[name], name, heads)
    tokenizer = tokenizer_from_metadata(file.path, file.metadata, config["vocab_size"])
    config["eos_token_ids"] = list(dict.fromkeys(config["eos_token_ids"] + tokenizer.eos_token_ids))
    tokenizer.eos_token_ids = list(config["eos_token_ids"])
    return Checkpoint(config, renamed, tokenizer, source or file.path, {"eos_token_id": list(config["eos_token_ids"])})
