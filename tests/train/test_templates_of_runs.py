"""Which template a run trains with, what it says of it, and what adapters and checkpoints of earlier days mean."""

import json

import pytest

import jpo
from jpo.cli.main import main
from jpo.data.readers import write_records
from jpo.evaluate.sampling import encoder_of

TALK = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "assistant", "content": "Yo"}],
    [{"role": "assistant", "content": "No"}],
)
PAIRS = [{"prompt": TALK[0], "chosen": TALK[1], "rejected": TALK[2]}]
TEXTS = [{"prompt": "Hi", "chosen": "Yo", "rejected": "No"}]


def options(**changes):
    return {"batch_size": 1, "steps": 2, "warmup_steps": 0, "save_steps": 1, **changes}


@pytest.mark.parametrize(
    ("records", "template", "name", "shown"),
    [
        (TEXTS, None, "spaced", "'### Instructions: Hi\\n\\n### Response:' + ' Yo' + '<|im_end|>'"),
        (TEXTS, "paper", "paper", "'### Instructions: Hi\\n\\n### Response:' + 'Yo' + '<|im_end|>'"),
        (PAIRS, None, "chat", "'<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n' + 'Yo' + '<|im_end|>'"),
        (PAIRS, "raw", "raw", "'Hi' + 'Yo' + '<|im_end|>'"),
        ([*TEXTS, *PAIRS], None, "chat", "'<|im_start|>user\\nHi<|im_end|>"),
    ],
)
def test_conversations_train_with_the_chat_template_unless_told_otherwise(records, template, name, shown):
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), records, jpo.PreferenceConfig(template=template))
    assert trainer.template.name == name
    first, second = trainer.shown.splitlines()
    assert first == f"template: {name!r}; the first record as prompt + response + end:"
    assert second.strip().startswith(shown)
    examples = [{"messages": TALK[0] + TALK[1]}] if records is PAIRS else [{"instruction": "Hi", "response": "Yo"}]
    if records is not PAIRS and len(records) > 1:
        return
    sft = jpo.SFTTrainer(jpo.load("tiny"), examples, jpo.SFTConfig(template=template))
    assert sft.template.name == name and sft.shown.splitlines()[1] == second


def test_a_model_without_a_chat_template_takes_the_default():
    lm = jpo.load("tiny")
    lm.tokenizer.chat_template = None
    assert jpo.PreferenceTrainer(lm, PAIRS).template.name == "spaced"


def test_the_command_says_which_template(tmp_path, capsys):
    write_records(tmp_path / "pairs.jsonl", PAIRS)
    arguments = ["--model", "tiny", "--data", str(tmp_path / "pairs.jsonl"), "--steps", "1", "--batch-size", "1"]
    assert main(["train", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert "template: 'chat'; the first record as prompt" in capsys.readouterr().out
    stored = json.loads((tmp_path / "out" / "jpo_config.json").read_text())
    assert stored["version"] == 2 and stored["training"]["template"] == "chat" and stored["template"]["kind"] == "chat"


def test_an_adapter_that_says_paper_from_before(tmp_path):
    """Without a version its training's "paper" was today's "spaced"; the stored texts say so, and are what is read."""
    lm = jpo.load("tiny")
    jpo.PreferenceTrainer(lm, TEXTS, jpo.PreferenceConfig(**options(output=str(tmp_path)))).train()
    path = tmp_path / "jpo_config.json"
    stored = json.loads(path.read_text())
    old = {key: value for key, value in stored.items() if key != "version"}
    path.write_text(json.dumps({**old, "training": {**old["training"], "template": "paper"}}))
    again = jpo.load("tiny")
    encoder = encoder_of(again, again.load_adapter(tmp_path))
    assert encoder.template.name == "spaced"
    assert encoder.encode("Hi", "Yo").response_ids == (*again.tokenizer.encode(" Yo"), again.tokenizer.eos_token_id)


def test_a_checkpoint_from_before_goes_on(tmp_path, monkeypatch):
    """Its mark names the template; equal tokens are what counts."""
    from jpo.train import trainer as trainers

    def of_that_time(*given, real=trainers.fingerprint):
        return real(*given) | {"template": '"paper"'}

    with monkeypatch.context() as patch:
        patch.setattr(trainers, "fingerprint", of_that_time)
        config = jpo.PreferenceConfig(**options(output=str(tmp_path)))
        jpo.PreferenceTrainer(jpo.load("tiny"), TEXTS, config).train()
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["mark"]["template"] == '"paper"'
    trainer = jpo.PreferenceTrainer(
        jpo.load("tiny"), TEXTS, jpo.PreferenceConfig(**options(output=str(tmp_path), steps=3))
    )
    assert trainer.train(resume=True)["step"] == [1, 2, 3]
