"""Merged models against PEFT's own merge, read by transformers; the adapter file against llama.cpp's converter."""

import json
import os
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
import transformers
from export.adapters import family_model, random_adapter
from export.test_merge import GGUF
from model_files import write_directory
from parity.test_gguf_vocabularies import llama_cpp

from jpo import export
from jpo.formats import load_checkpoint
from jpo.formats.families import family_of
from jpo.formats.gguf import read_gguf

SETTINGS = {"use_rslora": True, "alpha_pattern": {"down_proj": 3.5, "c_fc": 2.0}}


def merged_by_peft(folder, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", **options)
    return peft.PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload().state_dict()


@pytest.mark.parametrize("name", ["llama3", "phi3", "gpt2", "qwen2", "gemma3", "cohere2"])
def test_values_are_pefts(tmp_path, name):
    """Float32 bases: fused modules, (inputs, outputs) of GPT-2, patterns; in shards that transformers reads."""
    config = family_model(tmp_path / "base", name, **GGUF[name])
    random_adapter(tmp_path / "adapter", config, ranks={"q_proj": 2, "c_attn": 3}, **SETTINGS)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", max_shard_size="30KB")
    assert (tmp_path / "merged" / "model.safetensors.index.json").exists()
    theirs = merged_by_peft(tmp_path, dtype=torch.float32)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key].numpy(), value.numpy(), atol=1e-6, err_msg=key)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_half_precision_base_is_rounded_once(tmp_path, dtype):
    """PEFT rounds B A to the base's type before it adds it; ours rounds the sum alone, so each is within one step."""
    write_directory(tmp_path / "base", dtype=dtype)
    random_adapter(tmp_path / "adapter", load_checkpoint(tmp_path / "base").config)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    theirs = merged_by_peft(tmp_path, dtype="auto")
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
    step = 2.0**-7 if dtype == "BF16" else 2.0**-10
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype == {"BF16": torch.bfloat16, "F16": torch.float16}[dtype]
        np.testing.assert_allclose(ours[key].float().numpy(), value.float().numpy(), rtol=step, atol=step / 8)


@pytest.mark.parametrize("name", ["llama3", "phi3"])
def test_the_adapter_file_is_that_of_llama_cpps_converter(tmp_path, name):
    """convert_lora_to_gguf.py of a checkout (JPO_LLAMA_CPP): the same names, shapes, bits and alpha.

    Not GPT-2's, whose A and B the converter turns with the weight: llama.cpp refuses that file and takes ours."""
    script = os.path.join(llama_cpp(), "convert_lora_to_gguf.py")
    config = family_model(tmp_path / "base", name, **GGUF[name])
    path = tmp_path / "base" / "config.json"  # the converter looks for what transformers derives
    plain = {"architectures": [family_of(config["model_type"]).architecture], "n_ctx": 128}
    path.write_text(json.dumps(json.loads(path.read_text()) | plain))
    random_adapter(tmp_path / "adapter", config)
    export.export_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "ours.gguf")
    command = [sys.executable, script, "--base", "base", "--outtype", "f32", "--outfile", "theirs.gguf", "adapter"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = read_gguf(tmp_path / "ours.gguf"), read_gguf(tmp_path / "theirs.gguf")
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert ours.metadata[key] == theirs.metadata[key]
    assert ours.tensors.keys() == theirs.tensors.keys()
    for key, tensor in theirs.tensors.items():
        assert ours.tensors[key].shape == tensor.shape
        np.testing.assert_array_equal(ours.tensors[key].float32(), tensor.float32())
