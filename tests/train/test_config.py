"""The options: declared once; YAML, flags, help and types derive from the classes."""

import json
from dataclasses import fields

import pytest

import jpo
from jpo.cli.main import main
from jpo.errors import JpoError
from jpo.study import load_config
from jpo.train.config import PreferenceConfig, SFTConfig, choices_of, hints, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2e3),
        ("1.5e3", 1.5e3),
        ("5.0e-5", 5e-5),
        ("1e5", 1e5),
        ("'1e-4'", "1e-4"),
        ("1e-4x", "1e-4x"),
        ("e-4", "e-4"),
        ("0x1e4", 0x1E4),
    ],
)
def test_yaml_reads_numbers_as_numbers(text, value):
    read = parse_yaml(f"key: {text}")["key"]
    assert read == value and type(read) is type(value)


def test_a_learning_rate_without_a_point_in_a_file_and_in_set(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("learning_rate: 1e-4\nbeta: 2e-1\n")
    assert PreferenceConfig.from_dict(read_yaml(path)).learning_rate == 1e-4
    assert load_config(preset="demo", assignments=["train.learning_rate=3e-3"]).train["learning_rate"] == 3e-3


def test_every_flag_of_a_run_is_a_key_of_the_file(tmp_path):
    """storage used to be a flag only."""
    path = tmp_path / "options.yaml"
    path.write_text(
        f"model: tiny\ndata: [example]\nstorage: float32\noutput: {tmp_path / 'out'}\nsteps: 1\nbatch_size: 2\n"
    )
    assert main(["train", "--config", str(path)]) == 0
    settings = json.loads((tmp_path / "out/jpo_config.json").read_text())
    assert settings["training"]["storage"] == "float32"


def test_a_storage_that_the_model_does_not_have_is_refused():
    with pytest.raises(JpoError, match="storage: the config says 'q8_0', but the model was loaded with 'auto'"):
        jpo.PreferenceTrainer(jpo.load("tiny"), "example", PreferenceConfig(storage="q8_0"))


def test_the_config_beside_an_adapter_tells_its_true_shape(tmp_path):
    """It used to say r 8 after add_lora(r=4)."""
    lm = jpo.load("tiny")
    lm.add_lora(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=("q_proj", "o_proj"), use_rslora=True)
    config = PreferenceConfig(output=str(tmp_path / "out"), steps=1, batch_size=2)
    jpo.PreferenceTrainer(lm, "example", config).train()
    own = json.loads((tmp_path / "out/jpo_config.json").read_text())["training"]
    peft = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (own["r"], own["lora_alpha"], own["lora_dropout"], own["use_rslora"]) == (4, 8.0, 0.1, True)
    assert own["target_modules"].split(",") == peft["target_modules"] == ["q_proj", "o_proj"]
    assert own["r"] == peft["r"] and config.r == 8  # the user's own object is left alone


@pytest.mark.parametrize("cls", [PreferenceConfig, SFTConfig])
def test_help_explains_every_field(cls):
    for item in fields(cls):
        assert f"    {item.name}: " in cls.__doc__ and item.metadata["help"] in cls.__doc__


@pytest.mark.parametrize("cls", [PreferenceConfig, SFTConfig])
def test_choices_are_literals_and_checked(cls):
    choices = choices_of(cls)
    assert {"lr_scheduler_type", "truncation", "compute", "storage"} <= set(choices)
    for name, values in choices.items():
        for value in values:
            cls(**{name: value})
        with pytest.raises(JpoError, match=f"{name}: expected one of {values[0]}"):
            cls(**{name: "nothing of the kind"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", "2", "a whole number"),
        ("batch_size", True, "a whole number"),
        ("learning_rate", "fast", "a number"),
        ("steps", 1.5, "a whole number or null"),
        ("use_rslora", 1, "true or false"),
        ("loss", 3, "text or a list"),
        ("output", 3, "text or null"),
    ],
)
def test_types_are_said_in_words(key, value, expected):
    with pytest.raises(JpoError, match=f"options: {key}: expected {expected}, got {value!r}"):
        PreferenceConfig.from_dict({key: value}, "options")


def test_lora_defaults_stand_once():
    lm = jpo.load("tiny")
    lm.add_lora()
    config = PreferenceConfig()
    assert (lm.lora.r, lm.lora.lora_alpha, lm.lora.lora_dropout) == (config.r, config.lora_alpha, config.lora_dropout)
    assert lm.lora.target_modules == config.targets


def test_every_hint_is_resolved():
    assert all(not isinstance(hint, str) for cls in (PreferenceConfig, SFTConfig) for hint in hints(cls).values())
