"""The options: declared once; YAML, flags, help and types derive from the classes."""

import json
from dataclasses import fields

import numpy as np
import pytest

import jpo
from jpo.cli.main import main
from jpo.declared import choices_of, hints, read_yaml
from jpo.errors import JpoError
from jpo.study import load_config
from jpo.train.config import PreferenceConfig, SFTConfig


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


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("learning_rate", "1e-3", "a number"),
    ("beta", "x", "a number"),
    ("max_grad_norm", None, "a number"),
    ("weight_decay", -1, "a number of at least 0"),
    ("precompute_ref_log_probs", "no", "true or false"),
    ("report_to", None, "text or a list"),
    ("loss", None, "text or a list"),
    ("output", 3, "text or null"),
])  # fmt: skip
def test_the_constructor_says_so_too(key, value, expected):
    with pytest.raises(JpoError, match=f"^{key}: expected {expected}, got "):
        PreferenceConfig(**{key: value})


def test_numbers_and_paths_of_other_libraries(tmp_path):
    """As notebooks have them; the run's files hold plain ones."""
    config = PreferenceConfig(
        output=tmp_path / "out", steps=np.int64(1), batch_size=np.int32(2), learning_rate=np.float32(0.5),
        beta=np.array(0.25), use_rslora=np.bool_(True), lora_alpha=4, template=None,
    )  # fmt: skip
    assert (config.output, config.steps, config.beta, config.lora_alpha) == (str(tmp_path / "out"), 1, 0.25, 4.0)
    assert type(config.lora_alpha) is float and config.use_rslora is True
    jpo.PreferenceTrainer(jpo.load("tiny"), "example", config).train()
    own = json.loads((tmp_path / "out/jpo_config.json").read_text())["training"]
    assert (own["learning_rate"], own["output"]) == (0.5, str(tmp_path / "out"))


def test_lora_defaults_stand_once():
    lm = jpo.load("tiny")
    lm.add_lora()
    config = PreferenceConfig()
    assert (lm.lora.r, lm.lora.lora_alpha, lm.lora.lora_dropout) == (config.r, config.lora_alpha, config.lora_dropout)
    assert lm.lora.target_modules == config.targets


def test_every_option_of_an_adapter_reaches_the_model_from_flags(tmp_path):
    """--rank-pattern and its like, in the file too; the run's own record and PEFT's file say the same."""
    out = tmp_path / "out"
    flags = [
        "--r",
        "4",
        "--use-dora",
        "--bias",
        "lora_only",
        "--modules-to-save",
        "embed_tokens,norm",
        "--target-modules",
    ]
    flags += ["all-linear", "--exclude-modules", "k_proj,up_proj", "--rank-pattern", "q_proj=2,down_proj=3"]
    flags += ["--layers-to-transform", "1", "--alpha-pattern", "q_proj=5"]
    run = ["train", "--model", "tiny", "--data", "example", "--steps", "1", "--batch-size", "2", "--output", str(out)]
    assert main([*run, *flags]) == 0
    lm = jpo.load("tiny")
    lm.load_adapter(out)
    settings = lm.lora
    assert (settings.use_dora, settings.bias, settings.modules_to_save) == (True, "lora_only", ("embed_tokens", "norm"))
    shapes = {name.removeprefix("base_model.model."): shape for name, shape in lm.trainable.shapes.items()}
    layer = "model.layers.1.self_attn"
    assert shapes[f"{layer}.q_proj.lora_A.weight"][0] == 2 and shapes[f"{layer}.v_proj.lora_A.weight"][0] == 4
    assert (
        f"{layer}.k_proj.lora_A.weight" not in shapes and "model.layers.0.self_attn.q_proj.lora_A.weight" not in shapes
    )
    assert shapes["model.embed_tokens.weight"] == (512, 64) and f"{layer}.q_proj.lora_magnitude_vector" in shapes
    assert settings.scaling_of(f"{layer}.q_proj") == 2.5
    own = json.loads((out / "jpo_config.json").read_text())["training"]
    assert own["rank_pattern"] == {"q_proj": 2, "down_proj": 3} and own["layers_to_transform"] == "1"
    assert own["exclude_modules"] == "k_proj,up_proj" and own["modules_to_save"] == "embed_tokens,norm"
    options = {key: own[key] for key in ("rank_pattern", "layers_to_transform", "modules_to_save", "use_dora")}
    assert PreferenceConfig.from_dict(options).adapter_options()["layers_to_transform"] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": "q_proj"}, "rank_pattern: expected NAME=NUMBER"),
        ({"rank_pattern": "q_proj=x"}, "rank_pattern: expected NAME=NUMBER"),
        ({"rank_pattern": 3}, "rank_pattern: expected text, a mapping or null, got 3"),
        ({"layers_to_transform": "a,b"}, "layers_to_transform: expected numbers"),
        ({"bias": "some"}, "bias: expected one of none, all, lora_only"),
    ],
)
def test_options_of_an_adapter_are_refused_by_name(options, message):
    with pytest.raises(JpoError, match=message):
        PreferenceConfig.from_dict(options)


def test_every_hint_is_resolved():
    assert all(not isinstance(hint, str) for cls in (PreferenceConfig, SFTConfig) for hint in hints(cls).values())
