"""jpo inspect: models, adapters and data as tables that people read, and whole as JSON."""

import gzip
import json

import pytest

import jpo
from jpo.cli.inspection import shortened
from jpo.cli.main import main


def shown(capsys, *arguments):
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([0] * 30, "0 x 30"),
        ([512, 512, 512, 512, 0] * 2, "(512 x 4, 0) x 2"),
        ([512, 512, 512, 0, 512, 512, 512], [512, 512, 512, 0, 512, 512, 512]),
        ([-1, *[0] * 9], "-1, 0 x 9"),
        ([float(n) for n in range(32)], "0, 1, 2, ..., 31 (32 values)"),
        ([1, 0] * 9, "(1, 0) x 9"),
        ((), "-"),
        ([7], "7"),
        ("text", "text"),
        (None, None),
    ],
)
def test_lists_are_shortened(value, text):
    assert shortened(value) == text


def test_a_model_s_table(capsys):
    """Family, tensor types, what is adapted, memory, template, context; no list of 8 rotary factors in full."""
    lm = jpo.load("tiny")
    lm.add_lora()
    text = shown(capsys, "tiny")
    assert "llama (LlamaForCausalLM)" in text and "2,048 tokens" in text and f"{lm.values():,}" in text
    assert f"{lm.trainable.params.size:,}; with --target-modules all-linear" in text
    assert "* q_proj" in text and "* v_proj" in text and "* o_proj" not in text and "o_proj" in text
    assert "3 of (128, 64)" in text and "full fine-tuning" in text and "free here" in text
    assert "spaced; chat for conversational records (the model's own)" in text
    assert "layer_window" in text and "0 x 3" in text and "rotary[0].inv_freq" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_model_as_json_is_whole(capsys):
    facts = json.loads(shown(capsys, "tiny", "--json"))
    lm = jpo.load("tiny")
    assert facts["values"] == lm.values() == sum(kind["values"] for kind in facts["tensors"].values())
    assert facts["config"]["rotary"][0]["inv_freq"] == pytest.approx(list(lm.config["rotary"][0]["inv_freq"]))
    assert facts["config"]["layer_window"] == [0, 0, 0]
    adapter = facts["adapter"]
    by_default = [found["trained_values"] for found in adapter["modules"].values() if found["default"]]
    assert sum(by_default) == adapter["trained_values"] == lm.adapter_size(8).values
    every = sum(found["trained_values"] for found in adapter["modules"].values())
    assert every == adapter["trained_values_all_linear"]
    memory = facts["memory"]
    assert memory["training_lora"] > memory["training_lora_gradient_checkpointing"] > memory["loaded"] > 0


def test_the_estimate_is_the_dry_run_s(capsys, tmp_path):
    """A step whose micro-batches are full takes what --dry-run says of it."""
    pairs = [{"prompt": f"Say {n} {'word ' * 90}", "chosen": "yes " * 90, "rejected": "no " * 90} for n in range(8)]
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), pairs, jpo.PreferenceConfig())
    facts = json.loads(shown(capsys, "tiny", "--json"))
    assert facts["memory"]["training_lora"] == pytest.approx(trainer.memory.total, rel=0.1)


def test_an_adapter_s_table(capsys, tmp_path):
    config = jpo.PreferenceConfig(steps=1, batch_size=2, r=4, output=str(tmp_path / "out"))
    jpo.PreferenceTrainer(jpo.load("tiny"), "example", config).train()
    capsys.readouterr()
    text = shown(capsys, str(tmp_path / "out"))
    assert "template" in text and "spaced" in text and "target modules" in text and "trained with" in text
    facts = json.loads(shown(capsys, str(tmp_path / "out"), "--json"))
    assert facts["r"] == 4 and facts["base_model"] == "tiny" and facts["jpo"]["training"]["steps"] == 1


def test_data_says_what_each_command_reads(capsys, tmp_path):
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    with gzip.open(tmp_path / "kto.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    facts = json.loads(shown(capsys, str(tmp_path / "kto.jsonl.gz"), "--json"))
    assert (facts["records"], facts["judged_examples"], facts["examples_for_jpo_sft"]) == (2, 2, 1)
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nSay it.,It is so.,No.\n")
    assert json.loads(shown(capsys, str(tmp_path / "pairs.csv"), "--json"))["preference_pairs"] == 1
    assert "none: " in shown(capsys, str(tmp_path / "kto.jsonl.gz"))
    assert json.loads(shown(capsys, "example", "--json"))["preference_pairs"] == 32
