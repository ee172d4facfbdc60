"""Merging adapters that are more than low-rank updates: the merged files score as the adapted model does."""

import json

import numpy as np
import pytest
from export.adapters import family_model
from export.test_merge import scores

import jpo
from jpo import export
from jpo.cli.main import main
from jpo.errors import JpoError

CASES = {
    "phi3": {"use_dora": True, "use_rslora": True},
    "gpt2": {"use_dora": True, "bias": "all", "modules_to_save": ["ln_1", "wte"]},
    "llama3": {"modules_to_save": ["embed_tokens", "norm", "o_proj"]},
    "stablelm-parallel": {"bias": "all", "modules_to_save": ["lm_head"]},
    "granite": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
}


def whole_adapter(folder, model, **options):
    """An adapter whose trained values are all away from where they start."""
    lm = jpo.load(model)
    lm.add_lora(r=3, **{"target_modules": "all-linear", **options})
    random = np.random.default_rng(2)
    for name in lm.trainable.names:
        view = lm.trainable.view(name)
        scale = 0.1 if "lora_B" in name else 0.2 * max(np.abs(view).mean(), 0.1)
        view[...] += (scale * random.standard_normal(view.shape)).astype(np.float32)
    lm.save_adapter(folder)


@pytest.mark.parametrize("name", CASES)
def test_both_formats_score_as_the_adapted_model(tmp_path, name):
    family_model(tmp_path / "base", name)
    whole_adapter(tmp_path / "adapter", tmp_path / "base", **CASES[name])
    expected = scores(tmp_path / "base", tmp_path / "adapter")
    assert np.abs(expected - scores(tmp_path / "base")).min() > 1e-3
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "hf")
    np.testing.assert_allclose(scores(tmp_path / "hf"), expected, rtol=1e-5)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "m.gguf", format="gguf")
    np.testing.assert_allclose(scores(tmp_path / "m.gguf"), expected, rtol=1e-5)
    tied = json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"]
    assert tied is (name == "phi3")  # an embedding or a head that was trained alone parts them


@pytest.mark.parametrize("options", [{"use_dora": True}, {"target_modules": ["embed_tokens", "down_proj"]}])
@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_type_that_is_asked_for_is_not_rounded_to_the_base_s_first(tmp_path, format, options):
    family_model(tmp_path / "plain", "llama3")
    lm = jpo.load(tmp_path / "plain")
    lm.add_lora(r=1)  # B is zero: the merged directory is the model in bfloat16
    lm.save_adapter(tmp_path / "zero")
    export.merge(tmp_path / "plain", tmp_path / "zero", tmp_path / "base", type="bf16")
    whole_adapter(tmp_path / "adapter", tmp_path / "base", **options)
    export.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", format=format, type="f32")
    np.testing.assert_allclose(scores(tmp_path / "merged"), scores(tmp_path / "base", tmp_path / "adapter"), rtol=1e-5)


def test_a_gguf_base_on_the_command_line(tmp_path):
    family_model(tmp_path / "base", "llama3", rope_scaling=None)
    whole_adapter(tmp_path / "adapter", tmp_path / "base", use_dora=True, modules_to_save=["norm"])
    gguf, plain = tmp_path / "base.gguf", tmp_path / "plain"
    lm = jpo.load(tmp_path / "base")
    lm.add_lora(r=1)  # B is zero: the merged file is the base
    lm.save_adapter(plain)
    export.merge(tmp_path / "base", plain, gguf, format="gguf", type="bf16")
    run = ["merge", "--model", str(gguf), "--adapter", str(tmp_path / "adapter"), "--format", "gguf"]
    assert main([*run, "--output", str(tmp_path / "m.gguf")]) == 0
    np.testing.assert_allclose(scores(tmp_path / "m.gguf"), scores(gguf, tmp_path / "adapter"), rtol=2e-2)
    assert jpo.load(tmp_path / "m.gguf")._checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"


def test_llama_cpp_s_adapter_file_has_no_place_for_it(tmp_path):
    family_model(tmp_path / "base", "llama3")
    whole_adapter(tmp_path / "adapter", tmp_path / "base", use_dora=True)
    with pytest.raises(
        JpoError, match=r"lora_magnitude_vector cannot be merged or exported: only LoRA's matrices of layers can"
    ):
        export.export_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "a.gguf")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_nor_for_an_adapted_embedding_or_head(tmp_path, module):
    family_model(tmp_path / "base", "llama3")
    whole_adapter(tmp_path / "adapter", tmp_path / "base", target_modules=[module, "q_proj"])
    with pytest.raises(JpoError, match=rf"{module}\.lora_.* cannot be merged or exported"):
        export.export_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "a.gguf")
