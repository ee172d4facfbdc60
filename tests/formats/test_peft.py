"""Adapters: read, written, widened, and refused by name where PEFT knows more than is implemented."""

import json
import os

import numpy as np
import pytest
from model_files import adapter_config, adapter_tensors, write_adapter_files

from jpo.errors import FormatError, JpoError
from jpo.formats import tensors as formats_tensors
from jpo.formats.peft import AdapterConfig, base_name, read_adapter, write_adapter

MODULES = tuple(name.split(".")[1] for name in formats_tensors.MODULES)


def test_reads_what_peft_writes(tmp_path):
    written = write_adapter_files(tmp_path, adapter_config(lora_dropout=0.05, use_rslora=True, r=4, lora_alpha=6))
    config, tensors = read_adapter(tmp_path)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 6, 0.05, True)
    assert config.target_modules == ("q_proj", "v_proj") and config.scaling == 3.0 and config.extra == {}
    assert tensors.keys() == written.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(tensors[name], value)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_widened(tmp_path, dtype):
    written = write_adapter_files(tmp_path, dtype=dtype)
    for name, value in read_adapter(tmp_path)[1].items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, written[name], rtol=2**-7)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q|k|v|o|gate|up|down)_proj", list(MODULES)])
def test_target_modules_come_from_the_tensors(tmp_path, targets):
    write_adapter_files(tmp_path, adapter_config(target_modules=targets), adapter_tensors(MODULES))
    assert read_adapter(tmp_path)[0].target_modules == MODULES


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"bias": "some"}, "bias"),
        ({"bias": ["all"]}, "bias"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern"),
        ({"rank_pattern": [2]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern"),
        ({"modules_to_save": "lm_head"}, "modules_to_save"),
        ({"modules_to_save": [1]}, "modules_to_save"),
        ({"ensure_weight_tying": 2, "modules_to_save": ["lm_head"]}, "ensure_weight_tying"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": 1}, "init_lora_weights"),
        ({"a_future_key": {"x": 1}}, "a_future_key"),
        ({"r": 0}, "r"),
        ({"r": 2.5}, "r"),
        ({"r": 1 << 20}, "r"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"target_modules": [1]}, "target_modules"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path"),
    ],
)
def test_keys_are_refused_by_name(tmp_path, change, named):
    write_adapter_files(tmp_path, adapter_config(**change))
    with pytest.raises(FormatError, match=rf"adapter_config.json: key {named}\b"):
        read_adapter(tmp_path)


def dropped(name):
    tensors = adapter_tensors()
    del tensors[f"base_model.model.model.layers.{name}.weight"]
    return tensors


def named(name, shape=(4, 64)):
    return {**adapter_tensors(), f"base_model.model.model.{name}.weight": np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (dropped("1.self_attn.q_proj.lora_B"), "layers.1.self_attn.q_proj.lora_B.weight is missing"),
        (dropped("0.self_attn.v_proj.lora_A"), "layers.0.self_attn.v_proj.lora_A.weight is missing"),
        (named("layers.7.self_attn.q_proj.lora_A"), "is missing"),
        (named("layers.999999.self_attn.q_proj.lora_A"), "is missing"),
        (named("layers.0.self_attn.up_proj.lora_A"), "layers.0.self_attn.up_proj.lora_B.weight is missing"),
        (named("embed_tokens.lora_embedding_A"), "only LoRA matrices of"),
        (named("layers.0.self_attn.q_proj.lora_magnitude_vector"), "only LoRA matrices of"),
        (adapter_tensors(r=3), r"expected shape \(4, in\) by key r, got \(3, 64\)"),
        ({}, "holds no tensor"),
    ],
)
def test_tensors_are_refused_by_name(tmp_path, tensors, message):
    write_adapter_files(tmp_path, tensors=tensors)
    with pytest.raises(FormatError, match=message):
        read_adapter(tmp_path)


TABLE = "base_model.model.model.embed_tokens.lora_embedding"


def test_an_embedding_s_adapter_is_whole_and_not_tied(tmp_path):
    a, b = np.zeros((4, 512), np.float32), np.zeros((64, 4), np.float32)
    write_adapter_files(tmp_path, tensors={**adapter_tensors(), f"{TABLE}_A": a})
    with pytest.raises(FormatError, match="embed_tokens.lora_embedding_B is missing"):
        read_adapter(tmp_path)
    tied = adapter_config(ensure_weight_tying=True)
    write_adapter_files(tmp_path, tied, {**adapter_tensors(), f"{TABLE}_A": a, f"{TABLE}_B": b})
    with pytest.raises(FormatError, match="key ensure_weight_tying is not implemented where the embedding"):
        read_adapter(tmp_path)


VECTOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
HEAD = "base_model.model.lm_head.weight"


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"use_dora": True}, HEAD, "what bias and modules_to_save name"),
        ({"use_dora": True}, VECTOR, r"layers.0.self_attn.v_proj.lora_magnitude_vector is missing"),
        ({}, VECTOR, "magnitudes with use_dora"),
        ({}, HEAD, "what bias and modules_to_save name"),
        ({"modules_to_save": ["embed_tokens"]}, HEAD, "what bias and modules_to_save name"),
        ({"bias": "all"}, HEAD, "what bias and modules_to_save name"),
        ({"modules_to_save": ["lm_head"]}, VECTOR, "magnitudes with use_dora"),
    ],
)
def test_what_the_configuration_does_not_name_is_refused(tmp_path, change, name, message):
    write_adapter_files(tmp_path, adapter_config(**change), adapter_tensors() | {name: np.zeros(64, np.float32)})
    with pytest.raises(FormatError, match=message):
        read_adapter(tmp_path)


def test_biases_of_every_version_and_originals_beside_whole_modules(tmp_path):
    stem = "base_model.model.model.layers.0"
    ones = np.ones(64, np.float32)
    given = {
        f"{stem}.self_attn.q_proj.bias": ones,  # of an adapted module, as PEFT before 0.6 named it
        f"{stem}.self_attn.k_proj.bias": 2 * ones,
        f"{stem}.ln.bias": 3 * ones,
        f"{stem}.ln.weight": 4 * ones,
        f"{stem}.ln.original_module.bias": 5 * ones,
        f"{stem}.ln.modules_to_save.bias": 3 * ones,
    }
    write_adapter_files(tmp_path, adapter_config(bias="all", modules_to_save=["ln"]), adapter_tensors() | given)
    tensors = read_adapter(tmp_path)[1]
    whole = {name: float(value[0]) for name, value in tensors.items() if ".lora_" not in name}
    assert whole == {
        f"{stem}.self_attn.q_proj.base_layer.bias": 1.0,
        f"{stem}.self_attn.k_proj.bias": 2.0,
        f"{stem}.ln.bias": 3.0,
        f"{stem}.ln.weight": 4.0,
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tensors_that_are_not_finite_are_refused_by_name(tmp_path, value):
    import jpo

    lm = jpo.load("tiny")
    lm.add_lora(r=2)
    lm.trainable.params[5] = value
    lm.save_adapter(tmp_path)
    name = r"adapter_model.safetensors: tensor base_model.*layers.0.self_attn.q_proj.lora_A.weight: .* NaN or infinite"
    for read in (read_adapter, lm.load_adapter):
        with pytest.raises(FormatError, match=name):
            read(tmp_path)
    assert sum(not np.isfinite(tensor).all() for tensor in read_adapter(tmp_path, check=False)[1].values()) == 1
    lm.load_adapter(tmp_path, check=False)
    jpo.load("tiny", check=False).load_adapter(tmp_path)


def test_round_trip_is_exact_and_whole(tmp_path):
    tensors = adapter_tensors(MODULES)
    config = AdapterConfig(4, 8, 0.0, MODULES, True, "base", {"template": {"prompt": "p"}, "scope": "joint"})
    write_adapter(tmp_path / "a", config, tensors)
    write_adapter(tmp_path / "b", config, dict(reversed(tensors.items())))
    read, values = read_adapter(tmp_path / "a")
    assert read == config
    for name, value in tensors.items():
        np.testing.assert_array_equal(values[name], value)
    assert sorted(os.listdir(tmp_path / "a")) == ["adapter_config.json", "adapter_model.safetensors", "jpo_config.json"]
    for name in os.listdir(tmp_path / "a"):  # the order of the tensors leaves no trace
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    config.extra = {}
    write_adapter(tmp_path / "a", config, tensors)
    assert not (tmp_path / "a" / "jpo_config.json").exists()


def test_a_failed_write_leaves_the_old_adapter(tmp_path, monkeypatch):
    config = AdapterConfig(4, 8, 0.0, ("q_proj", "v_proj"))
    write_adapter(tmp_path, config, adapter_tensors())
    before = (tmp_path / "adapter_model.safetensors").read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_adapter(tmp_path, config, adapter_tensors(seed=1))
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_writing_checks_its_arguments(tmp_path):
    config = AdapterConfig(4, 8, 0.0, ("q_proj",))
    with pytest.raises(JpoError, match="target_modules"):
        write_adapter(tmp_path / "x", config, adapter_tensors())
    doubles = {name: value.astype(np.float64) for name, value in adapter_tensors(("q_proj",)).items()}
    with pytest.raises(JpoError, match="expected float32, got float64"):
        write_adapter(tmp_path / "x", config, doubles)
    assert not (tmp_path / "x").exists()


def test_the_pickled_form_is_not_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config()))
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"adapter_model.bin is a pickle"):
        read_adapter(tmp_path)


def test_the_base_is_named_so_that_peft_finds_it(tmp_path):
    """The hub's name where it is known, an absolute path for a local model; our own name stands in jpo_config.json."""
    assert base_name("smollm2-135m", {}) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base_name("copy", {"_name_or_path": "org/model-1.5"}) == "org/model-1.5"
    assert base_name(str(tmp_path), {"_name_or_path": "/some/where"}) == str(tmp_path)
    assert base_name("tiny", {}) == "tiny"
    import jpo

    lm = jpo.load("tiny")
    lm.add_lora()
    lm.save_adapter(tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter")[0].extra["base_model"] == "tiny"
