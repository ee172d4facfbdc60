"""Hugging Face directories: dtypes, shards, both spellings of RoPE, refusals by name, and what is written back."""

import json
import os

import numpy as np
import pytest
from model_files import hf_config, llama_weights, safetensors_bytes, write_directory
from reference.families import configuration

from jpo.errors import FormatError, JpoError
from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize


def refusal(folder):
    with pytest.raises(FormatError) as caught:
        load_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_values(tmp_path, dtype, shards):
    meant = write_directory(tmp_path, dtype=dtype, shards=shards)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == meant.keys()
    for name, values in meant.items():
        stored = checkpoint.tensors[name]
        assert stored.dtype == dtype and not stored.data.flags.owndata
        np.testing.assert_array_equal(stored.float32(), values)
    assert checkpoint.source == str(tmp_path)


def test_symbolic_links_work_as_in_the_hub_cache(tmp_path):
    write_directory(tmp_path / "blobs")
    os.makedirs(tmp_path / "snapshot")
    for name in os.listdir(tmp_path / "blobs"):
        os.symlink(tmp_path / "blobs" / name, tmp_path / "snapshot" / name)
    assert load_checkpoint(tmp_path / "snapshot").config["num_hidden_layers"] == 2


def test_tokenizer_settings(tmp_path):
    write_directory(tmp_path)
    tokenizer = load_checkpoint(tmp_path).tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 0)
    assert tokenizer.eos_token_ids == [0, 2]  # generation_config.json's join
    assert tokenizer.chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert load_checkpoint(tmp_path).tokenizer.chat_template == "new"


def test_named_chat_templates(tmp_path):
    write_directory(tmp_path)
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_checkpoint(tmp_path).tokenizer.chat_template == "b"


def test_tied_head(tmp_path):
    weights = llama_weights(tied=True)
    write_directory(tmp_path, weights, config=hf_config(tie_word_embeddings=True))
    assert "lm_head.weight" not in load_checkpoint(tmp_path).tensors
    again = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    write_directory(tmp_path, again, config=hf_config(tie_word_embeddings=True))
    assert "lm_head.weight" not in load_checkpoint(tmp_path).tensors
    write_directory(tmp_path, llama_weights(), config=hf_config(tie_word_embeddings=True))
    assert "lm_head.weight differs from the embedding" in refusal(tmp_path)


def test_stored_frequencies_are_ignored(tmp_path):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones((8,), np.float32)}
    write_directory(tmp_path, {**llama_weights(), **extra})
    assert len(load_checkpoint(tmp_path).tensors) == len(llama_weights())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "mamba"}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, "'odd'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "attention_bias": True}, "attention_bias"),
    ],
)
def test_mathematics_not_implemented_is_refused_by_name(tmp_path, change, named):
    write_directory(tmp_path, config=hf_config(**change))
    message = refusal(tmp_path)
    assert named in message and "config.json" in message


@pytest.mark.parametrize(
    "change",
    [
        {"attention_dropout": 0.1},  # acts in training with the reference implementation only
        {"rope_interleaved": False, "is_llama_config": True, "transformers.js_config": {}},
        {"pretraining_tp": 1, "torch_dtype": "bfloat16", "initializer_range": 0.02},
        {"rope_scaling": {"rope_type": "default"}},
        {"layer_types": ["full_attention"] * 2},
    ],
)
def test_harmless_keys_are_accepted(tmp_path, change):
    write_directory(tmp_path, config=hf_config(**change))
    assert load_checkpoint(tmp_path).config["num_hidden_layers"] == 2


def test_both_rope_spellings_agree():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    old = normalize("c", hf_config(rope_theta=500000.0, rope_scaling=scaling))
    new = normalize("c", hf_config(rope_theta=None, rope_parameters={**scaling, "rope_theta": 500000.0}))
    assert (
        old["rotary"][0]["inv_freq"] == new["rotary"][0]["inv_freq"]
        and old["rotary"][0]["inv_freq"][-1] < 500000.0 ** -(14 / 16) / 7
    )


@pytest.mark.parametrize("part", [0.0, -0.25, 1.25, 2.0])
@pytest.mark.parametrize("name", ["stablelm", "phi3"])
def test_a_rotary_share_beyond_the_head_is_refused(name, part):
    with pytest.raises(FormatError, match="c: key partial_rotary_factor: expected a (finite )?number above 0"):
        normalize("c", {**configuration(name), "partial_rotary_factor": part})


def test_head_dim_need_not_be_hidden_over_heads():
    config = normalize("c", hf_config(head_dim=24))
    assert config["head_dim"] == 24 and len(config["rotary"][0]["inv_freq"]) == 12


def test_mistral_defaults():
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert normalize("c", hf_config(**mistral))["layer_window"] == [4096, 4096]
    assert normalize("c", {**hf_config(**mistral), "sliding_window": None})["layer_window"] == [0, 0]
    assert normalize("c", hf_config(sliding_window=5))["layer_window"] == [0, 0]  # Llama's blocks ignore it


def test_written_directory_loads_back(tmp_path):
    source = load_checkpoint("tiny")
    values = {name: tensor.float32() for name, tensor in source.tensors.items()}
    write_checkpoint(tmp_path / "out", source.config, values, source.tokenizer, source.generation)
    again = load_checkpoint(tmp_path / "out")
    assert {k: v for k, v in again.config.items() if k != "hf"} == {k: v for k, v in source.config.items() if k != "hf"}
    for name, value in values.items():
        np.testing.assert_array_equal(again.tensors[name].float32(), value)
    text = "Hé  123 <|im_end|>\n日本 🤗"
    assert again.tokenizer.encode(text) == source.tokenizer.encode(text)
    assert again.tokenizer.chat_template == source.tokenizer.chat_template
    assert again.tokenizer.eos_token_ids == source.tokenizer.eos_token_ids
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp")]


def test_writing_refuses_before_it_writes(tmp_path):
    source = load_checkpoint("tiny")
    values = {name: tensor.float32() for name, tensor in source.tensors.items()}
    del values["model.norm.weight"]
    with pytest.raises(JpoError, match=r"model.norm.weight is missing"):
        write_checkpoint(tmp_path / "out", source.config, values, source.tokenizer)
    values["model.norm.weight"] = np.ones(64, np.float64)
    with pytest.raises(JpoError, match=r"model.norm.weight: expected float32 \(64,\), got float64"):
        write_checkpoint(tmp_path / "out", source.config, values, source.tokenizer)
    config = {**source.config, "hf": {**source.config["hf"], "jpo_rope_factors": [1.0]}}
    with pytest.raises(JpoError, match=r"rope_freqs.weight"):
        write_checkpoint(tmp_path / "out", config, values, source.tokenizer)
    assert not (tmp_path / "out").exists()


def test_misaligned_tensors_are_copied(tmp_path):
    write_directory(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = llama_weights()
    raw = safetensors_bytes({name: ("F32", value) for name, value in weights.items()})
    size = int.from_bytes(raw[:8], "little")
    path.write_bytes((size + 1).to_bytes(8, "little") + raw[8 : 8 + size] + b" " + raw[8 + size :])
    tensors = load_checkpoint(tmp_path).tensors
    for name, value in weights.items():
        assert tensors[name].data.ctypes.data % 4 == 0
        np.testing.assert_array_equal(tensors[name].float32(), value)


def test_missing_model():
    with pytest.raises(JpoError, match=r"no such model.*'smollm2-135m'.*'tiny'"):
        load_checkpoint("no/such/model")


def test_longrope_under_its_older_names():
    """Phi-3's first files call longrope "su" or "yarn" and name no length inside: the same frequencies, both sets."""
    base = configuration("phi3-beyond")
    want = normalize("c", base)["rotary"]
    assert want[0]["inv_freq"] != want[0]["long_inv_freq"] and want[0]["original"] == 12
    for name in ("su", "yarn"):
        assert normalize("c", {**base, "rope_scaling": {**base["rope_scaling"], "type": name}})["rotary"] == want
    with pytest.raises(FormatError, match="long_factor: expected 3 factors"):
        normalize("c", {**base, "rope_scaling": {**base["rope_scaling"], "long_factor": [1.0]}})
