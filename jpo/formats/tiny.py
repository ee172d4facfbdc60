"""The built-in model "tiny": a random Llama of 0.13 million weights with a tokenizer, made in memory.

The same bits on every machine and NumPy version: weights are raw 64-bit words of PCG64 scaled to a uniform range,
because NumPy keeps its bit generators' streams but not those of its distributions. Training it shows that the
engine runs; what it writes means nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jpo import tokenization
from jpo.formats.config import normalize
from jpo.formats.stored import Checkpoint, StoredTensor
from jpo.formats.tensors import tensor_shapes

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# the 253 most frequent merges of English instructions and answers, byte-level BPE, parts divided by "|"
_MERGES = (
    "Ġ|t Ġ|a h|e i|n o|n r|e o|u #|# Ġ|s Ġt|he e|s Ġ|c a|t Ġ|w a|n Ġ|I Ġ|b Ġ|m on|s e|r Ġ|o n|d Ġ|f Ġ|y Ġt|o s|t "
    "Ġy|ou ##|# in|g i|t Ġ|d t|i Ġ|p a|r i|s Ġa|nd o|r Ġ|h l|e Ġ|in â|Ģ o|m Ġt|h e|n a|l Ġo|f u|c Ġ|g e|d Ġ|l "
    "ĠI|n Ġ|R ti|ons o|w i|c es|p st|r ons|e str|uc ĠR|esp struc|tions ĠIn|structions ĠResp|onse âĢ|Ļ k|e v|e "
    "Ġ|is a|s e|t l|l o|o l|d Ġ|re Ġ|e Ġ|n Ġ|it Ġb|e Ġ|T l|y Ġth|at Ġf|or u|t Ġa|re Ġ|on Ġc|an om|e Ġ|A h|at u|s "
    "a|c Ġ|W o|t Ġ|C ou|t Ġl|i a|y i|d Ġ|H g|h Ġ|he r|o ou|ld Ġw|it Ġwit|h r|i m|e Ġh|a Ġ|S Ġs|t Ġo|r i|r Ġd|o "
    "u|re a|d Ġa|n an|t Ġs|ome o|p i|f Ġm|e Ġyou|r Ġm|o e|c Ġs|h ĠT|he a|ke he|r en|t Ġ|k e|re Ġa|b r|y k|ing "
    "Ġli|ke oo|d s|e Ġc|h g|e a|m i|l u|l ĠW|hat at|i c|h v|er Ġab|out Ġ|us Ġw|h e|p gh|t Ġf|r ĠH|ow u|m u|r Ġ|le "
    "es|t Ġe|x a|b i|m Ġb|ut Ġha|ve e|ll n|t Ġa|s o|l Ġa|l Ġ|u a|in i|p t|er Ġb|y al|ly Ġn|e Ġ|Y t|h Ġs|o Ġw|hat "
    "Ġg|et ĠC|an Ġfr|om c|e Ġh|ow Ġ|B Ġ|P Ġm|ake Ġ|D in|d an|d Ġre|c Ġ|M Ġ|v Ġa|t Ġw|ant l|p Ġ|1 Ġs|p Ġin|t Ġ|r "
    "Ġhe|lp Ġt|i Ġ|F Ġs|e Ġp|l id|e ĠY|ou s|o at|e Ġm|y q|u Ġthe|y Ġw|ould Ġth|is Ġmo|re ati|on i|ght p|p Ġg|o "
    "Ġthe|m ou|r er|s Ġ|if âĢ|ľ âĢ|Ŀ i|ll k|s Ġp|ro Ġw|e ic|h e|op Ġt|ry Ġk|n Ġal|so eop|le t|her Ġ|âĢľ ou|nd "
    "a|st Ġw|he ar|d al|l a|p u|n in|e es|s Ġc|on ĠI|t ing|s e|nd o|c Ġn|ot Ġne|ed Ġd|is ar|t "
)

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_tokenizer() -> tokenization.Tokenizer:
    """512 tokens: three special ones, the 256 bytes, 253 merges; no BOS is added, EOS is <|im_end|>."""
    pairs = [(left, right) for left, _, right in (pair.partition("|") for pair in _MERGES.split())]
    spellings = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in pairs)]
    vocabulary = {token: index for index, token in enumerate(spellings)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    names: dict[str, str | None] = {
        "unk_token": _SPECIAL[0],
        "bos_token": _SPECIAL[1],
        "eos_token": _SPECIAL[2],
        "pad_token": _SPECIAL[2],
    }
    return tokenization.Tokenizer(backend, special=names, chat_template=_CHAT)


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights for a normalized configuration: matrices uniform with variance 1/fan_in, norms around 1."""
    words = np.random.PCG64(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        unit = (words.random_raw(math.prod(shape)) >> np.uint64(40)).astype(np.float32) / np.float32(
            1 << 23
        ) - np.float32(1)
        if "norm" in name:
            values = np.float32(1) + np.float32(0.125) * unit
        else:
            values = np.float32(math.sqrt(3 / shape[-1])) * unit
        tensors[name] = values.reshape(shape)
    return tensors


def load_tiny(seed: int = 0) -> Checkpoint:
    """The model "tiny" as a Checkpoint of float32 tensors."""
    config = normalize("tiny", dict(CONFIG))
    tensors = {
        name: StoredTensor(name, "F32", value.shape, value.reshape(-1).view(np.uint8))
        for name, value in random_tensors(config, seed).items()
    }
    return Checkpoint(config, tensors, tiny_tokenizer(), "tiny", {"eos_token_id": [2]})
