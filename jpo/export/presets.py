"""What is written by name, and the type that each tensor of a GGUF file gets: llama-quantize's presets, without
importance weights."""

from __future__ import annotations

import re
from typing import Literal, get_args

from jpo.formats.stored import BLOCKS

Format = Literal["hf", "gguf"]  # of a merged model
AdapterType = Literal["f32", "f16", "q8_0"]  # of an adapter file's matrices
FileType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"]
FILE_TYPES: tuple[FileType, ...] = get_args(FileType)
# preset -> (type of most matrices, general.file_type)
_PRESETS = {
    "f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q4_0": ("Q4_0", 2),
    "q4_k_m": ("Q4_K", 15),
}  # fmt: skip
_SMALLER = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # what takes the place of a type whose blocks do not fit into a row
_FLOATS = ("F32", "F16", "BF16")


def file_type(preset: FileType) -> int:
    """general.file_type of a preset."""
    return _PRESETS[preset][1]


def _more_bits(layer: int, layers: int) -> bool:
    """The layers whose values and MLP outputs Q4_K_M keeps in Q6_K: the first and last eighth, every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(dtype: str, width: int) -> str:
    if width % BLOCKS[dtype][0] == 0:
        return dtype
    smaller = _SMALLER.get(dtype, dtype)
    return smaller if width % BLOCKS[smaller][0] == 0 else "F16"


def tensor_type(preset: FileType, name: str, shape: tuple[int, ...], layers: int, tied: bool) -> str:
    """The type of the GGUF tensor `name`; tied: the embedding is the head too."""
    dtype = _PRESETS[preset][0]
    if len(shape) < 2 or name == "position_embd.weight":
        return "F32"
    if dtype in _FLOATS:
        return dtype
    width = shape[-1]
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        dtype = "Q8_0" if width % BLOCKS[dtype][0] or dtype == "Q8_0" else "Q6_K"
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|attn_qkv|ffn_down)\.weight", name)
    if found and preset == "q4_k_m" and _more_bits(int(found[1]), layers):
        dtype = "Q6_K"
    return _fitting(dtype, width)
