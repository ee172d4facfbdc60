"""The built-in model is the same everywhere and fit for training."""

import hashlib
import time

import numpy as np

from jpo.formats import load_checkpoint
from jpo.formats.tensors import tensor_shapes


def test_same_bits_everywhere():
    digest = hashlib.sha256()
    tensors = load_checkpoint("tiny").tensors
    for name in sorted(tensors):
        digest.update(tensors[name].data.tobytes())
    assert digest.hexdigest() == "f7517481e6a8d86fe485a5e92e9ecfe57ce392d2a933296106c825147b366272"


def test_shapes_and_scales():
    checkpoint = load_checkpoint("tiny")
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == tensor_shapes(checkpoint.config)
    for name, tensor in checkpoint.tensors.items():
        values = tensor.float32()
        if values.ndim == 2:
            assert abs(values.std() * values.shape[1] ** 0.5 - 1) < 0.05, name
        else:
            assert abs(values.mean() - 1) < 0.1 and values.std() > 0.02


def test_tokenizer():
    tokenizer = load_checkpoint("tiny").tokenizer
    assert tokenizer.vocab_size == 512 and not tokenizer.adds_bos and tokenizer.eos_token_ids == [2]
    text = "### Instructions: é 日本 🤗\n\n\t12 \x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("### Instructions: What is the best")) < 16
    assert tokenizer.encode("<|im_end|>") == [2]


def test_quick():
    start = time.process_time()  # of this process alone: a busy machine is no slower by it
    load_checkpoint("tiny")
    assert time.process_time() - start < 2
    assert np.isfinite(load_checkpoint("tiny").config["rotary"][0]["inv_freq"]).all()
