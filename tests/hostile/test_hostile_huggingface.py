"""Malformed Hugging Face directories: each form an error that names the file and the key or tensor."""

import contextlib
import json
import os
import random
import shutil

import numpy as np
import pytest
from model_files import (
    adapter_config,
    hf_config,
    llama_weights,
    safetensors_bytes,
    write_adapter_files,
    write_directory,
)

from jpo.errors import FormatError
from jpo.formats import load_checkpoint
from jpo.formats.peft import read_adapter


def refusal(folder, named=""):
    with pytest.raises(FormatError) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert named in str(caught.value), str(caught.value)


def test_missing_files_are_named(tmp_path):
    write_directory(tmp_path / "whole")
    for name, message in {
        "config.json": "config.json is missing",
        "tokenizer.json": "tokenizer.json is missing",
        "model.safetensors": "neither model.safetensors nor model.safetensors.index.json found",
    }.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        os.unlink(tmp_path / name / name)
        refusal(tmp_path / name, message)
    (tmp_path / "model.safetensors" / "pytorch_model.bin").write_bytes(b"x")
    refusal(tmp_path / "model.safetensors", "is a pickle and is not read")
    (tmp_path / "config.json" / "adapter_config.json").write_text("{}")
    refusal(tmp_path / "config.json", "this is an adapter")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", ""),
        (b"\xff", "not valid UTF-8"),
        (b"[" * 200000, ""),
        (b'{"a":' * 200000, ""),
        (b'{"model_type": ' + b"1" * 10000 + b"}", ""),
        (b'{"a": "\\ud800"', ""),
    ],
)
def test_broken_json(tmp_path, name, raw, message):
    write_directory(tmp_path)
    (tmp_path / name).write_bytes(raw)
    refusal(tmp_path, name)
    refusal(tmp_path, message)


def test_duplicate_keys(tmp_path):
    write_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf_config())[:-1] + ', "hidden_size": 32}')
    refusal(tmp_path, "config.json: key 'hidden_size' stands twice")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("hidden_size", value) for value in (None, 0, -64, 64.5, "64", True, [64], 1 << 40, float("nan"))],
        *[("vocab_size", value) for value in (0, 271, 1 << 31)],
        *[("num_attention_heads", value) for value in (0, 3, "4")],
        *[("num_key_value_heads", value) for value in (0, 3, 8)],
        *[("num_hidden_layers", value) for value in (0, 1, 3, (1 << 31) - 1, 1e300)],
        *[("intermediate_size", value) for value in (97, -1, {})],
        *[("head_dim", value) for value in (15, 32, 1 << 30, "16")],
        *[("rms_norm_eps", value) for value in (0, -1e-5, float("nan"), float("inf"), "x", True)],
        *[("rope_theta", value) for value in (-1, 1, float("nan"), float("inf"), "x", 1e-30)],
        *[("rope_scaling", value) for value in ("x", 5, {"rope_type": 5}, {"rope_type": ["x"]})],
        *[("max_position_embeddings", value) for value in (0, -1, "x")],
        *[("tie_word_embeddings", value) for value in ("no", 1)],
        *[("attention_bias", value) for value in (True, "x")],
        *[("mlp_bias", value) for value in (True, 1)],
        *[("eos_token_id", value) for value in ("x", -1, [1.5], True)],
        *[("bos_token_id", value) for value in ("x", -1)],
        *[("architectures", value) for value in ("LlamaForCausalLM", [5], {}, [], 5, {"0": "LlamaForCausalLM"})],
        *[("model_type", value) for value in (None, 5, ["llama"])],
        *[("layer_types", value) for value in ("x", [5], {"full_attention": 0, "sliding_attention": 0})],
        *[("hidden_act", value) for value in (5, ["silu"])],
    ],
)
def test_configuration_values(tmp_path, key, value):
    config = hf_config()
    config.pop(key, None)
    if value is not None:
        config[key] = value
    write_directory(tmp_path, config=config)
    refusal(tmp_path)


@pytest.mark.parametrize(
    "types",
    [
        5,
        "x",
        ["full_attention"],
        ["full_attention"] * 3,
        ["full_attention", "x"],
        ["full_attention", 5],
        ["full_attention", []],
        {"full_attention": 0, "sliding_attention": 1},
    ],
    ids=str,
)
def test_layer_types(tmp_path, types):
    """Where a family has layers that differ: as many of the two kinds as there are layers, in a list."""
    qwen = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    write_directory(tmp_path, config=hf_config(**qwen, use_sliding_window=True, sliding_window=8, layer_types=types))
    refusal(tmp_path, "layer_types: expected 2 of full_attention, sliding_attention, got")


@pytest.mark.parametrize("window", [0, -1, 2.5, "x", True])
def test_sliding_window_values(tmp_path, window):
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    write_directory(tmp_path, config=hf_config(**mistral, sliding_window=window))
    refusal(tmp_path, "sliding_window")


def test_ids_outside_the_vocabulary(tmp_path):
    write_directory(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 272]}')
    refusal(tmp_path, "token id 272 lies outside the vocabulary of 272")


def test_tokens_beyond_the_embedding(tmp_path):
    write_directory(tmp_path)
    settings = {"bos_token": "<new one>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    refusal(tmp_path, "273 tokens are more than vocab_size = 272")


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors"]
)
def test_shards_stay_in_the_directory(tmp_path, shard):
    write_directory(tmp_path, shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = shard
    path.write_text(json.dumps(index))
    refusal(tmp_path, f"tensor model.norm.weight: shard {shard!r} leaves the directory")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (None, "weight_map"),
        ([], "weight_map"),
        ({}, "weight_map"),
        ({"model.norm.weight": 5}, "tensor model.norm.weight: expected the name"),
        ({"model.norm.weight": "x.bin"}, "tensor model.norm.weight: expected the name"),
        ({"model.norm.weight": "none.safetensors"}, "none.safetensors: cannot be read"),
        ({"odd": "model-00001-of-00002.safetensors"}, "tensor odd: the shard index places it here"),
    ],
)
def test_shard_indexes(tmp_path, places, message):
    write_directory(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refusal(tmp_path, message)


def header(name="model.norm.weight", dtype="F32", shape=(64,), places=(0, 256), **more):
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": places}, **more})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 8,
        safetensors_bytes({}, length=1 << 40),
        safetensors_bytes({}, length=(1 << 64) - 1),
        safetensors_bytes({}, header="[]"),
        safetensors_bytes({}, header="{"),
        safetensors_bytes({}, header='{"a":' * 100000),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(places=(0, 512))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(places=(128, 64))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(places=(-256, 0))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(places=(0, 1 << 70))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(shape=(1 << 40, 1 << 40))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(shape=(-64,))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(shape=(32,))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(dtype="ODD")),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(dtype="I32")),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(dtype="F64", shape=(32,))),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header()[:-1] + ", " + header()[1:]),
        safetensors_bytes({"x": ("F32", np.ones((64,)))}, header='{"model.norm.weight": 5}'),
    ],
)
def test_broken_safetensors(tmp_path, raw):
    write_directory(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(raw)
    refusal(tmp_path, "model.safetensors")


@pytest.fixture
def unseen(monkeypatch):
    """The package's own look at a safetensors file passes everything: the file changed after it."""
    monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: contextlib.nullcontext())


LENGTHS = [0, 1, 3000, 1 << 20, 1 << 40, (1 << 64) - 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_header_beyond_the_file_is_refused_once_more(tmp_path, unseen, length):
    write_directory(tmp_path)
    raw = safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(), length=length)
    (tmp_path / "model.safetensors").write_bytes(raw)
    refusal(tmp_path, f"header of {length} bytes does not fit into the file")


PLACES = [(0, 512), (128, 64), (-256, 0), (-256, -1), (4, 256), (0, 255), (0, 1 << 70), [0], [0, 256.0], "0", None]


@pytest.mark.parametrize("places", PLACES, ids=str)
def test_a_tensor_s_place_is_checked_once_more(tmp_path, unseen, places):
    write_directory(tmp_path)
    raw = safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(places=places))
    (tmp_path / "model.safetensors").write_bytes(raw)
    refusal(tmp_path, "tensor model.norm.weight: ")


@pytest.mark.parametrize("shape", [[-64], [64.0], ["64"], "64", None, [1 << 50], [0, 64], [[64]], [True]], ids=str)
def test_a_tensor_s_shape_is_checked_once_more(tmp_path, unseen, shape):
    write_directory(tmp_path)
    raw = safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(shape=shape))
    (tmp_path / "model.safetensors").write_bytes(raw)
    refusal(tmp_path, "tensor model.norm.weight: ")


@pytest.mark.parametrize("entry", ["5", "null", "[]", '"F32"'])
def test_a_tensor_s_entry_is_checked_once_more(tmp_path, unseen, entry):
    write_directory(tmp_path)
    raw = safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=f'{{"model.norm.weight": {entry}}}')
    (tmp_path / "model.safetensors").write_bytes(raw)
    refusal(tmp_path, "tensor model.norm.weight: malformed header entry")


def test_dtypes_are_refused_by_tensor(tmp_path):
    write_directory(tmp_path)
    raw = safetensors_bytes({"x": ("F32", np.ones((64,)))}, header=header(dtype="I32"))
    (tmp_path / "model.safetensors").write_bytes(raw)
    refusal(tmp_path, "tensor model.norm.weight: dtype I32 is not implemented")


def test_truncated_safetensors(tmp_path):
    write_directory(tmp_path)
    raw = (tmp_path / "model.safetensors").read_bytes()
    head = 8 + int.from_bytes(raw[:8], "little")
    for end in [*range(0, head, 97), head, head + 1, len(raw) // 2, len(raw) - 1]:
        (tmp_path / "model.safetensors").write_bytes(raw[:end])
        refusal(tmp_path, "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "tensor model.norm.weight is missing"),
        ({"lm_head.weight": None}, "tensor lm_head.weight is missing"),
        ({"model.layers.0.self_attn.q_norm.weight": np.ones((16,))}, "q_norm.weight is unexpected"),
        ({"model.layers.0.self_attn.q_proj.bias": np.ones((64,))}, "q_proj.bias is unexpected"),
        ({"model.layers.2.mlp.up_proj.weight": np.ones((96, 64))}, "layers.2.mlp.up_proj.weight is unexpected"),
        ({"model.norm.weight": np.ones((65,))}, "model.norm.weight: the configuration needs shape (64,), got (65,)"),
        ({"model.layers.1.mlp.down_proj.weight": np.ones((96, 64))}, "needs shape (64, 96), got (96, 64)"),
        ({"model.embed_tokens.weight": np.ones((272, 64, 1))}, "needs shape (272, 64), got (272, 64, 1)"),
    ],
)
def test_tensors_against_the_configuration(tmp_path, change, message):
    weights = {name: value for name, value in {**llama_weights(), **change}.items() if value is not None}
    write_directory(tmp_path, weights)
    refusal(tmp_path, message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bos_token": 5}, "key bos_token"),
        ({"eos_token": {"content": []}}, "key eos_token"),
        ({"chat_template": 5}, "key chat_template"),
        ({"chat_template": [{"name": "default", "template": 5}]}, "key chat_template"),
    ],
)
def test_tokenizer_settings(tmp_path, settings, message):
    write_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    refusal(tmp_path, message)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_random_changes_never_crash(tmp_path, name):
    write_directory(tmp_path)
    raw = (tmp_path / name).read_bytes()
    made = random.Random(5)
    reach = min(len(raw), 4000)
    for _ in range(60):
        changed = bytearray(raw)
        for _ in range(made.choice((1, 2, 8))):
            changed[made.randrange(reach)] = made.randrange(256)
        (tmp_path / name).write_bytes(changed)
        try:
            load_checkpoint(tmp_path)
        except FormatError as error:
            assert str(tmp_path) in str(error)


def test_random_changes_of_an_adapter_never_crash(tmp_path):
    write_adapter_files(tmp_path, adapter_config())
    made = random.Random(6)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        raw = (tmp_path / name).read_bytes()
        for _ in range(80):
            changed = bytearray(raw)
            changed[made.randrange(min(len(raw), 1500))] = made.randrange(256)
            (tmp_path / name).write_bytes(changed)
            try:
                read_adapter(tmp_path)
            except FormatError as error:
                assert str(tmp_path) in str(error)
        (tmp_path / name).write_bytes(raw)


def test_truncated_adapters(tmp_path):
    write_adapter_files(tmp_path)
    raw = (tmp_path / "adapter_model.safetensors").read_bytes()
    for end in range(0, len(raw), 211):
        (tmp_path / "adapter_model.safetensors").write_bytes(raw[:end])
        with pytest.raises(FormatError, match=r"adapter_model\.safetensors"):
            read_adapter(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_fifo_in_place_of_a_file_is_refused_at_once(tmp_path, name):
    write_directory(tmp_path)
    os.unlink(tmp_path / name)
    os.mkfifo(tmp_path / name)
    refusal(tmp_path, "not a regular file")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, dtype):
    weights = llama_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 7] = np.nan
    write_directory(tmp_path, weights, dtype)
    refusal(tmp_path, "tensor model.layers.1.mlp.up_proj.weight: the value at (3, 7) is NaN or infinite")
    assert np.isnan(load_checkpoint(tmp_path, check=False).tensors["model.layers.1.mlp.up_proj.weight"].float32()[3, 7])
