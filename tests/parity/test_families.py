"""Every family against transformers and PEFT: log-likelihoods, greedy tokens, gradients of adapters and of all
weights."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from parity.peers import sequence_logp
from parity.test_model import check_likelihoods, compare_adapter_gradients, scores
from reference.families import FAMILIES, configuration
from reference.models import random_values, sequences

import jpo
from jpo.formats import load_checkpoint, write_checkpoint
from jpo.formats.config import normalize
from jpo.formats.families import families
from jpo.formats.tensors import modules


def peer(hf, values):
    """transformers' own model of a config.json dictionary with these values, in eval mode, attention in full."""
    keys = {key: value for key, value in hf.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(hf["model_type"], **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in values.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("kind", families())
def test_absent_keys_mean_what_transformers_takes(kind):
    """A file that gives sizes alone, and the same with every default of transformers written out."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 96, "num_key_value_heads": 2}
    if kind == "gpt2":
        sizes = {"vocab_size": 512, "n_embd": 64, "n_layer": 7, "n_head": 4}
    whole = transformers.AutoConfig.for_model(kind, **sizes, pad_token_id=0).to_dict() | {"architectures": None}
    ours, theirs = normalize(kind, {"model_type": kind, **sizes}), normalize(kind, whole)
    tokens = {"hf", "bos_token_id", "eos_token_ids"}  # which a file has to say
    assert {key: ours[key] for key in ours.keys() - tokens} == {key: theirs[key] for key in ours.keys() - tokens}


@pytest.mark.parametrize("name", ["llama3", "gpt2", "phi3", "cohere2"])
def test_an_end_of_text_that_no_file_names_is_none(tmp_path, name):
    """transformers' classes have ids of their own, which a model that is read from files does not end at."""
    hf = {key: value for key, value in configuration(name).items() if key not in ("bos_token_id", "eos_token_id")}
    config = normalize(name, hf)
    tokenizer = load_checkpoint("tiny").tokenizer
    write_checkpoint(tmp_path, config, random_values(config), tokenizer)
    path = tmp_path / "tokenizer_config.json"
    named = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in named.items() if key != "eos_token"}))
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.eos_token_id is not None and model.generation_config.eos_token_id is None
    lm = jpo.load(str(tmp_path))
    assert lm.tokenizer.eos_token_ids == [] and lm.tokenizer.eos_token_id is None


def both(folder, name):
    hf = configuration(name)
    config = normalize(name, hf)
    values = random_values(config)
    write_checkpoint(folder, config, values, load_checkpoint("tiny").tokenizer)
    return jpo.load(str(folder), storage="float32"), peer(hf, values), config, values


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihoods_and_greedy_tokens(tmp_path, name):
    lm, model, config, _ = both(tmp_path, name)
    check_likelihoods(lm, model, sequences(512), 1e-4)
    prompt = sequences(512)[0][0]
    text = lm.tokenizer.decode(list(prompt))
    ids = lm.tokenizer.encode(text)
    ours = list(lm.generate([text], temperature=0.0, max_new_tokens=12)[0][0].token_ids)
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=2
        )[0, len(ids) :].tolist()
    assert ours == theirs[: len(ours)] and (len(ours) == len(theirs) or set(theirs[len(ours) :]) <= {0, 2})


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_full_gradients(tmp_path, name, recompute):
    lm, model, _, _ = both(tmp_path, name)
    given = sequences(512)
    weights = np.linspace(-1, 1.5, len(given))
    lm.enable_full()
    lm._core.set_recompute(recompute)
    scores(lm, given, "joint", weights)
    sum(w * sequence_logp(model, *pair, "joint") for w, pair in zip(weights, given, strict=True)).backward()
    theirs = {key: value.grad.numpy() for key, value in model.named_parameters() if value.grad is not None}
    assert set(lm.trainable.names) == set(theirs)
    whole = np.sqrt(sum(float(np.sum(value.astype(np.float64) ** 2)) for value in theirs.values()))
    for key in lm.trainable.names:  # a bias of k without rotary embedding has none: softmax does not see it
        error = np.linalg.norm(lm.trainable.grad(key).astype(np.float64) - theirs[key])
        assert error < max(1e-4 * np.linalg.norm(theirs[key]), 1e-7 * whole), key


def adapter(config, folder, seed=1, **settings):
    """A saved adapter on all linear modules whose A and B are both nonzero."""
    from jpo.formats.peft import AdapterConfig, write_adapter

    random = np.random.default_rng(seed)
    tensors = {}
    for module in modules(config):
        stem = f"base_model.model.{module.name}"
        tensors[f"{stem}.lora_A.weight"] = random.standard_normal((4, module.inputs)) / np.sqrt(module.inputs)
        tensors[f"{stem}.lora_B.weight"] = 0.1 * random.standard_normal((module.outputs, 4))
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    targets = tuple(dict.fromkeys(module.short for module in modules(config)))
    turned = any(module.transposed for module in modules(config))
    write_adapter(folder, AdapterConfig(4, 8, 0.0, targets, fan_in_fan_out=turned, **settings), tensors)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_adapter_gradients(tmp_path, name, recompute):
    lm, model, config, _ = both(tmp_path / "base", name)
    adapter(config, tmp_path / "adapter")
    lm.load_adapter(str(tmp_path / "adapter"))
    lm._core.set_recompute(recompute)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True).eval()
    compare_adapter_gradients(lm, model, sequences(512), 1e-3)
    check_likelihoods(lm, model, sequences(512), 1e-4)
    lm.save_adapter(str(tmp_path / "again"))
    again = peft.PeftModel.from_pretrained(peer(config["hf"], lm_values(lm)), tmp_path / "again").eval()
    check_likelihoods(lm, again, sequences(512)[:2], 1e-4)
    lm.merge(str(tmp_path / "merged"))
    merged = jpo.load(str(tmp_path / "merged"))
    np.testing.assert_allclose(scores(merged, sequences(512), "joint"), scores(lm, sequences(512), "joint"), rtol=1e-4)


def lm_values(lm):
    """The base model's own values by name."""
    return {name: tensor.float32() for name, tensor in lm._checkpoint.tensors.items()}
