"""What PEFT's LoraConfig can say beside ranks: DoRA, biases, modules trained whole, patterns, chosen layers.

Its adapters read here and ours read there; log-likelihoods, gradients of all that is trained, and the merged model."""

import numpy as np
import peft
import pytest
import torch
from parity.peers import sequence_logp
from parity.test_families import both, lm_values, peer
from parity.test_model import check_likelihoods, scores
from reference.models import relative, sequences

import jpo
from jpo.formats.tensors import modules

EMBEDDING = {"gpt2": "wte"}
NORMS = {"gpt2": ["ln_f", "ln_1"], "stablelm-parallel": ["model.norm", "input_layernorm"]}
SECOND = {"gpt2": "c_proj", "phi3": "down_proj"}  # a module that some options treat apart

# what a case asks of PEFT, for a model whose linear modules, embedding, norms and special module have these names
CASES = {
    "dora": lambda m: {"use_dora": True},
    "dora-patterns": lambda m: {
        "use_dora": True, "use_rslora": True, "rank_pattern": {m["second"]: 2}, "alpha_pattern": {m["second"]: 5.0}
    },
    "patterns": lambda m: {"rank_pattern": {rf"1\..*{m['second']}": 6, m["second"]: 2}, "alpha_pattern": {m["second"]: 3}},
    "layers": lambda m: {"exclude_modules": [m["second"]], "layers_to_transform": [0, 2]},
    "bias-all": lambda m: {"bias": "all", "target_modules": [m["second"]]},
    "bias-lora-only": lambda m: {"bias": "lora_only", "target_modules": [m["second"]]},
    "whole-embedding": lambda m: {"modules_to_save": [m["embedding"], *m["norms"]], "target_modules": [m["second"]]},
    "whole-head": lambda m: {"modules_to_save": ["lm_head"], "layers_to_transform": 2},
    "whole-both": lambda m: {"modules_to_save": ["lm_head", m["embedding"]]},
    "whole-module": lambda m: {"modules_to_save": [m["second"]], "use_dora": True},
    "everything": lambda m: {"use_dora": True, "bias": "all", "modules_to_save": [m["embedding"], *m["norms"]]},
    "embedding": lambda m: {"target_modules": [m["embedding"], m["second"]]},
    "head": lambda m: {"target_modules": ["lm_head"]},
    "tables": lambda m: {"target_modules": [m["embedding"], "lm_head", m["second"]], "use_rslora": True},
}  # fmt: skip
# each case on two models: between them fused, turned and biased modules, LayerNorm, post-norms, parallel residual, tied
PAIRS = [
    ("dora", "phi3"), ("dora", "gpt2"), ("dora-patterns", "qwen2-window"), ("dora-patterns", "gemma3-scaled"),
    ("patterns", "llama3"), ("patterns", "phi3"), ("layers", "gpt2"), ("layers", "stablelm-parallel"),
    ("bias-all", "gpt2"), ("bias-all", "qwen2-window"), ("bias-lora-only", "gpt2"), ("bias-lora-only", "gemma3-scaled"),
    ("whole-embedding", "gpt2"), ("whole-embedding", "llama3"), ("whole-head", "gemma3-scaled"), ("whole-head", "phi3"),
    ("whole-both", "gpt2"), ("whole-both", "llama3"), ("whole-module", "phi3"), ("whole-module", "gpt2"),
    ("everything", "gpt2"), ("everything", "stablelm-parallel"),
    ("embedding", "gemma3"), ("embedding", "gpt2"), ("head", "gemma2"), ("head", "qwen2-window"),
    ("tables", "granite"), ("tables", "llama3"), ("tables", "gemma3-scaled"),
]  # fmt: skip


def options(name, case, lm):
    shorts = list(dict.fromkeys(module.short for module in modules(lm.config)))
    names = {"embedding": EMBEDDING.get(name, "embed_tokens"), "norms": NORMS.get(name, ["norm"])}
    return {"r": 4, "lora_alpha": 6, "target_modules": shorts} | CASES[case](
        names | {"second": SECOND.get(name, "o_proj")}
    )


def ours(name):
    """PEFT's name of a parameter in memory as its file has it."""
    for inside in (".modules_to_save.default", ".default.weight" if "magnitude" in name else ".default"):
        name = name.replace(inside, "")
    return name


def peer_with_adapter(model, folder, chosen):
    """PEFT's model with random values everywhere that is trained, saved to `folder`."""
    turned = any("Conv1D" in type(module).__name__ for module in model.modules())
    torch.manual_seed(5)  # of A's first values
    model = peft.get_peft_model(model, peft.LoraConfig(**chosen, task_type="CAUSAL_LM", fan_in_fan_out=turned)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=generator)
                value += 0.1 * noise if "lora_B" in key else 0.2 * noise * value.abs().mean().clamp(min=0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_options_of_peft(tmp_path, case, name):
    lm, model, config, _ = both(tmp_path / "base", name)
    chosen = options(name, case, lm)
    theirs = peer_with_adapter(model, tmp_path / "theirs", chosen)
    lm.load_adapter(tmp_path / "theirs")
    lm._core.set_recompute(case in ("dora", "everything"))
    given = sequences(512)
    with lm.disable_adapter():
        before = scores(lm, given, "joint")
    check_likelihoods(lm, theirs, given, 1e-4)
    assert np.abs(scores(lm, given, "joint") - before).max() > 1e-2  # the adapter says something
    compare_gradients(lm, theirs, given)
    lm.save_adapter(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(peer(config["hf"], lm_values(lm)), tmp_path / "ours").eval()
    check_likelihoods(lm, again, given[:2], 1e-4)
    lm.merge(tmp_path / "merged")
    merged = jpo.load(tmp_path / "merged")
    np.testing.assert_allclose(scores(merged, given, "joint"), scores(lm, given, "joint"), rtol=1e-5)

    names = {key: lm.trainable.shapes[key] for key in lm.trainable.names}
    lm.add_lora(**chosen)  # the same options, asked of us
    assert {key: lm.trainable.shapes[key] for key in lm.trainable.names} == names
    np.testing.assert_allclose(scores(lm, given, "joint"), before, rtol=2e-6)


def compare_gradients(lm, model, given):
    weights = np.linspace(-1, 1.5, len(given))
    scores(lm, given, "response", weights)
    sum(w * sequence_logp(model, *pair, "response") for w, pair in zip(weights, given, strict=True)).backward()
    gradients = {ours(key): value.grad.numpy() for key, value in model.named_parameters() if value.grad is not None}
    assert set(lm.trainable.names) == set(gradients)
    whole = np.sqrt(sum(float(np.sum(value.astype(np.float64) ** 2)) for value in gradients.values()))
    for key in lm.trainable.names:
        if np.linalg.norm(gradients[key]) > 1e-7 * whole:  # a bias of k may have none: softmax does not see it
            assert relative(lm.trainable.grad(key), gradients[key]) < 1e-3, key
        else:
            assert np.linalg.norm(lm.trainable.grad(key)) < 1e-6 * whole, key
