"""The embedded world's decoder: a tokenizer whose tokens are the world's words, and a small Llama with random weights.

Both are made in memory; jpo.study.study trains the weights from scratch. Knows shapes and spellings; never training.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jpo import tokenization
from jpo.formats.config import normalize
from jpo.formats.stored import Checkpoint, StoredTensor
from jpo.formats.tiny import CONFIG, random_tensors
from jpo.study import world

_SPECIAL = ("<|endoftext|>", "<|start|>", "<|end|>")
NAME = "embedded-world"


def world_tokenizer() -> tokenization.Tokenizer:
    """Byte-level BPE: every word of the world is one token, with its leading space; any other text falls into bytes."""
    words = [*(f"Ġ{word}" for word in (*world.WORDS, *world.NUMBERS, "=")), *world.FAMILIES]
    merges: dict[tuple[str, str], None] = {}  # each word is built letter by letter
    for word in words:
        for end in range(1, len(word)):
            merges.setdefault((word[:end], word[end]))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spellings = dict.fromkeys([*_SPECIAL, *letters, *(left + right for left, right in merges)])
    backend = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(spellings)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    names: dict[str, str | None] = {
        "unk_token": _SPECIAL[0],
        "bos_token": _SPECIAL[1],
        "eos_token": _SPECIAL[2],
        "pad_token": _SPECIAL[0],
    }
    return tokenization.Tokenizer(backend, special=names)


def random_decoder(seed: int, hidden_size: int = 64, layers: int = 2, heads: int = 4) -> Checkpoint:
    """A Llama of random weights for the world's tokenizer; the same bits for the same seed."""
    tokenizer = world_tokenizer()
    own: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden_size // heads,
        "max_position_embeddings": 128,
    }
    config = normalize(NAME, {**CONFIG, **own})
    tensors = {
        name: StoredTensor(name, "F32", value.shape, value.reshape(-1).view("uint8"))
        for name, value in random_tensors(config, seed).items()
    }
    return Checkpoint(config, tensors, tokenizer, NAME, {"eos_token_id": [2]})
