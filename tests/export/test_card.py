"""Model cards: the YAML head as the hub reads it, what is said, the same after a resumption, never over a person's."""

import json

import pytest
import yaml
from export.adapters import tiny_adapter

import jpo
from jpo import export
from jpo.export.card import CARD, data_names, merged_card, write_card

OPTIONS = {"steps": 4, "batch_size": 4, "save_steps": 2, "learning_rate": 1e-3, "seed": 3, "r": 4}
PAIRS = [
    {"i_chosen": f"i{k}", "r_chosen": f"good {k}", "i_reject": f"j{k}", "r_reject": f"bad {k * k}"} for k in range(6)
]


def head(text):
    """(the YAML head, the rest) of a card."""
    _, block, rest = text.split("---\n", 2)
    return yaml.safe_load(block), rest


def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


def train(tmp_path, name, resume=False, **options):
    config = jpo.PreferenceConfig(**{**OPTIONS, **options}, output=str(tmp_path / name))
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), str(pairs_file(tmp_path)), config, PAIRS[:3])
    trainer.train(resume=resume)
    return (tmp_path / name / CARD).read_text()


def test_a_preference_run(tmp_path):
    text = train(tmp_path, "out", scope="joint")
    values, rest = head(text)
    assert values == {
        "library_name": "peft", "pipeline_tag": "text-generation", "base_model": "tiny", "base_model_relation": "adapter",
        "datasets": ["pairs.jsonl"], "tags": ["jpo", "lora", "preference-optimization"],
    }  # fmt: skip
    assert "trained with JPO (joint preference optimization, arXiv 2404.00530; loss sigmoid)" in rest
    assert "6 pairs of `pairs.jsonl`, 4 steps." in rest and "| r | 4 |" in rest and "| learning_rate | 0.001 |" in rest
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| loss |  | {last['loss']:.6g} |" in rest and f"| {last['eval_loss']:.6g} |" in rest
    assert f"jpo {jpo.__version__}" in rest and "arXiv:2404.00530" in rest
    assert "step_seconds" not in rest and "peak_rss" not in rest and str(tmp_path) not in text


def test_a_resumed_run_leaves_the_same_card(tmp_path):
    whole = train(tmp_path, "out")
    (tmp_path / "out" / CARD).unlink()
    assert (tmp_path / "out" / "checkpoint-2").is_dir() and not (tmp_path / "out" / "checkpoint-4").exists()
    assert train(tmp_path, "out", resume=True) == whole


@pytest.mark.parametrize("full", [False, True])
def test_a_fine_tuning(tmp_path, full):
    examples = [{"instruction": f"i{k}", "response": f"r{k}"} for k in range(4)]
    config = jpo.SFTConfig(steps=2, batch_size=2, full=full, output=str(tmp_path / "out"))
    jpo.SFTTrainer(jpo.load("tiny"), examples, config).train()
    values, rest = head((tmp_path / "out" / CARD).read_text())
    assert values["library_name"] == ("transformers" if full else "peft") and "datasets" not in values
    assert values["base_model_relation"] == ("finetune" if full else "adapter") and values["tags"][-1] == "sft"
    assert "4 examples of records that have no file, 2 steps." in rest and "supervised fine-tuning" in rest


def test_a_persons_own_card_stays(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CARD).write_text("mine")
    assert train(tmp_path, "out") == "mine" and "README.md is not jpo's" in capsys.readouterr().err


def test_a_merged_model_tells_what_its_adapter_tells(tmp_path):
    train(tmp_path, "out", scope="response")
    export.merge("tiny", tmp_path / "out", tmp_path / "merged")
    values, rest = head((tmp_path / "merged" / CARD).read_text())
    assert (
        values["library_name"] == "transformers"
        and values["base_model"] == "tiny"
        and values["datasets"] == ["pairs.jsonl"]
    )
    assert values["tags"] == ["jpo", "preference-optimization", "dpo"]
    assert "6 pairs of `pairs.jsonl`, 4 steps." in rest and "| eval_loss |" in rest and "## Use" not in rest
    (tmp_path / "merged" / CARD).write_text("mine")
    export.merge("tiny", tmp_path / "out", tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged" / CARD).read_text() == "mine"
    tiny_adapter(tmp_path / "foreign")
    export.merge("tiny", tmp_path / "foreign", tmp_path / "other")
    values, rest = head((tmp_path / "other" / CARD).read_text())
    assert values["tags"] == ["jpo"] and "## Training" not in rest


def test_names_licences_and_yaml(tmp_path):
    base = tmp_path / "my model"
    base.mkdir()
    (base / CARD).write_text("---\ntags:\n- x\nlicense: apache-2.0\n---\ntext")
    values, _ = head(merged_card(str(base), {}, str(tmp_path), {}))
    assert values["license"] == "apache-2.0" and values["base_model"] == "my model"
    values, _ = head(merged_card(str(tmp_path), {"_name_or_path": "org/name"}, str(tmp_path), {}))
    assert values["base_model"] == "org/name" and "license" not in values
    values, _ = head(merged_card("smollm2-135m", {}, str(tmp_path), {}))
    assert values["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and values["license"] == "apache-2.0"
    assert data_names(["example", str(pairs_file(tmp_path))]) == ["example", "pairs.jsonl"]
    assert data_names(PAIRS) == [] and data_names("org/data") == ["org/data"]


def test_written_anew_where_it_is_ours(tmp_path):
    text = merged_card("tiny", {}, str(tmp_path), {})
    assert write_card(str(tmp_path), text) and write_card(str(tmp_path), text)
    (tmp_path / CARD).write_text("mine")
    assert not write_card(str(tmp_path), text) and (tmp_path / CARD).read_text() == "mine"
