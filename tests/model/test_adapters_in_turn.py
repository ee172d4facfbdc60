"""An adapter that is taken out of a model and put back says what it said, whatever it is made of."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpo
from jpo.errors import JpoError


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ("lm_head",)},
        {"target_modules": ("embed_tokens", "lm_head")},
    ],
    ids=["ranks", "dora", "bias", "saved", "tables"],
)
def test_taken_out_and_put_back(options):
    lm = jpo.load("tiny")
    base = lm.logits([5, 9, 30])
    lm.add_lora(r=2, **{"target_modules": "all-linear", **options})
    lm.trainable.params[:] += np.random.default_rng(0).normal(0, 0.05, lm.trainable.params.size)
    changed = lm.logits([5, 9, 30])
    held = lm.take_adapter()
    np.testing.assert_array_equal(lm.logits([5, 9, 30]), base)
    lm.add_lora(r=1)
    lm.use_adapter(held)
    np.testing.assert_array_equal(lm.logits([5, 9, 30]), changed)
    assert lm.lora is held.lora and lm.trainable is held.trainable and not np.array_equal(changed, base)


def test_an_adapted_head_samples_what_its_merged_model_samples(tmp_path):
    """One stream and several: decoding adds the head's update by itself."""
    lm = jpo.load("tiny")
    lm.add_lora(r=3, target_modules=["lm_head", "embed_tokens"])
    lm.trainable.params[:] = np.random.default_rng(1).normal(0, 0.3, lm.trainable.params.size)
    lm.merge(tmp_path)
    merged = jpo.load(tmp_path)
    for prompts in (["a"], ["a", "b ca", "d"]):
        asked = {"temperature": 0.0, "max_new_tokens": 12}
        ours, theirs = lm.generate(prompts, **asked), merged.generate(prompts, **asked)
        assert [one[0].token_ids for one in ours] == [one[0].token_ids for one in theirs]


def test_magnitudes_of_an_embedding_are_refused_by_name():
    with pytest.raises(JpoError, match="use_dora is not implemented for embed_tokens"):
        jpo.load("tiny").add_lora(target_modules=["q_proj", "embed_tokens"], use_dora=True)


def test_the_base_s_embedding_beside_its_adapter_must_be_the_model_s_own(tmp_path):
    """PEFT writes it there; where it has another vocabulary or other values, the adapter is none of this model's."""
    lm = jpo.load("tiny")
    lm.add_lora(r=2, target_modules=["embed_tokens"])
    lm.save_adapter(tmp_path)
    path, name = tmp_path / "adapter_model.safetensors", "base_model.model.model.embed_tokens.base_layer.weight"
    tensors, own = load_file(path), lm.state()["model.embed_tokens.weight"]
    save_file(tensors | {name: own}, path)
    lm.load_adapter(tmp_path)
    for other in (own + 1, own[:-1]):
        save_file(tensors | {name: np.ascontiguousarray(other)}, path)
        with pytest.raises(JpoError, match=r"embed_tokens\.weight: the adapter holds an embedding or head that is not"):
            lm.load_adapter(tmp_path)
