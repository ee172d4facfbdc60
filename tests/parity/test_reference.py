"""The float64 twin of tests/reference is transformers' model in float64, in every variant, adapter included."""

import numpy as np
import peft
import pytest
import torch
from parity.peers import peer_of, token_logps
from reference import decoder
from reference.models import MODULES, VARIANTS, adapter_of, sequences, write_random

from jpo.formats.config import normalize
from jpo.formats.peft import read_adapter


@pytest.mark.parametrize("name", VARIANTS)
def test_twin_is_transformers(tmp_path, name):
    hf, values = write_random(tmp_path, **VARIANTS[name])
    model = peer_of(hf, values, torch.float64)
    config = normalize("twin", hf)
    for prompt, response in sequences(512)[:2]:
        ids = (*prompt, *response)
        with torch.no_grad():
            expected = token_logps(model, ids).numpy()
        # rotary angles are float32 in transformers
        np.testing.assert_allclose(decoder.token_logps(config, values, ids), expected, rtol=2e-6)


def test_twin_with_adapter_is_peft(tmp_path):
    hf, values = write_random(tmp_path / "base")
    adapter_of(tmp_path / "adapter", values)
    config, tensors = read_adapter(tmp_path / "adapter")
    assert len(tensors) == 2 * len(MODULES) * hf["num_hidden_layers"]
    model = peft.PeftModel.from_pretrained(peer_of(hf, values), tmp_path / "adapter").double().eval()
    prompt, response = sequences(512)[0]
    with torch.no_grad():
        expected = token_logps(model, (*prompt, *response)).numpy()
    normal = normalize("twin", hf)
    ours = decoder.token_logps(normal, values, (*prompt, *response), (config.scaling, tensors))
    np.testing.assert_allclose(ours, expected, rtol=2e-6)
    assert np.abs(ours - decoder.token_logps(normal, values, (*prompt, *response))).max() > 0.01
