"""peft alone opens an adapter of ours: it finds the base by the name that the hub has for it, out of a local cache."""

import json
import os
import subprocess
import sys

import numpy as np
from model_files import hf_config, write_directory

import jpo
from jpo.formats.peft import read_adapter

HUB_ID, REVISION = "someone/small-llama", "0123456789abcdef0123456789abcdef01234567"
IDS = [5, 9, 2, 17, 30]
THEIRS = """
import json, sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    print("LOGITS", json.dumps(model(torch.tensor([json.loads(sys.argv[2])])).logits[0].tolist()))
"""


def cached(home):
    """The hub's cache with that model in it, as huggingface_hub lays it out."""
    folder = home / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    write_directory(snapshot, config=hf_config(_name_or_path=HUB_ID))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    return snapshot


def peft_logits(adapter, home):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", THEIRS, str(adapter), json.dumps(IDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOGITS ")]
    return np.array(json.loads(lines[0].removeprefix("LOGITS "))) if lines else done.stderr


def test_peft_finds_the_base_by_its_hub_id(tmp_path):
    lm = jpo.load(cached(tmp_path / "cache"), storage="float32")
    lm.add_lora(r=4, target_modules="all-linear")
    lm.trainable.params[:] = np.random.default_rng(0).normal(0, 0.05, lm.trainable.params.size)
    lm.save_adapter(tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter")[0].base_model_name_or_path == HUB_ID
    ours, base = lm.logits(IDS), lm.logits(IDS, adapter=False)
    theirs = peft_logits(tmp_path / "adapter", tmp_path / "cache")
    assert np.abs(ours - base).max() > 1e-2
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_without_the_base_peft_asks_the_hub(tmp_path):
    """The counterpart, so that the test above cannot pass by another way to the base."""
    lm = jpo.load(cached(tmp_path / "cache"))
    lm.add_lora(r=2)
    lm.save_adapter(tmp_path / "adapter")
    told = peft_logits(tmp_path / "adapter", tmp_path / "empty")
    assert isinstance(told, str) and "huggingface.co" in told
