"""jpo.torch.JPOTrainer, a subclass of TRL's, beside our own trainer: the same token ids, ten equal steps, each
scope."""

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
import trl
from parity.peers import METRICS, peer_of
from reference.models import adapter_of, write_random

import jpo
from jpo.errors import JpoError
from jpo.torch import JPOConfig, JPOTrainer

STEPS = 10
JOINT = [
    {"i_chosen": "Name a colour.", "r_chosen": "Blue is a colour.", "i_reject": "Add 2 and 3.", "r_reject": "Six, no."},
    {"i_chosen": "Add 2 and 3.", "r_chosen": "5", "i_reject": "Say hello.", "r_reject": "I would rather not say it."},
    {"i_chosen": "Where do bees live?", "r_chosen": "In hives.", "i_reject": "Name a colour.", "r_reject": "A boat."},
]
CONDITIONAL = [{"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}]
UNION = JOINT + CONDITIONAL
RATE = 2e-3


def config_of(folder, **changes):
    settings = {
        "per_device_train_batch_size": 4, "max_steps": STEPS, "learning_rate": RATE, "beta": 0.1, "weight_decay": 0.0,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 1.0, "logging_steps": 1, "bf16": False,
        "save_strategy": "no", "report_to": [], "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True,
        "dataloader_pin_memory": False, "max_length": 100, "max_prompt_length": 60,
    }  # fmt: skip
    return JPOConfig(str(folder), **(settings | changes))


def ours(folder, records, **changes):
    lm = jpo.load(str(folder / "base"), storage="float32")
    if (folder / "adapter").exists():
        lm.load_adapter(str(folder / "adapter"))
    config = jpo.PreferenceConfig(
        batch_size=4, steps=STEPS, learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0, beta=0.1,
        max_length=100, max_prompt_length=60, **changes,
    )  # fmt: skip
    trainer = jpo.PreferenceTrainer(lm, records, config)
    return trainer, trainer.train()


def theirs(folder, records, **changes):
    hf, values = write_random(folder / "base", max_position_embeddings=256)
    adapter_of(folder / "adapter", values)
    model = peft.PeftModel.from_pretrained(peer_of(hf, values), folder / "adapter", is_trainable=True)
    trainer = JPOTrainer(
        model,
        ref_model=peer_of(hf, values),
        args=config_of(folder / "trl", **changes),
        train_dataset=records,
        processing_class=transformers.AutoTokenizer.from_pretrained(folder / "base"),
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert len(log) == STEPS
    return trainer, {name: [entry[name] for entry in log] for name in METRICS}


def opens_in_jpo(folder, trainer, own):
    """What TRL saved is an adapter of ours, with the template that it was trained with; it scores as our own one
    does."""
    trainer.save_model(str(folder / "saved"))
    lm = jpo.load(str(folder / "base"), storage="float32")
    settings = lm.load_adapter(str(folder / "saved"))
    assert settings["template"] == own.template.to_dict() and settings["max_prompt_length"] == 60
    texts = ["Name a colour.", "Say hello."], [" Blue.", " Hello!"]
    np.testing.assert_allclose(lm.sequence_logps(*texts), own.lm.sequence_logps(*texts), rtol=1e-3)


@pytest.mark.parametrize("scope, records, loss", [
    ("joint", JOINT + CONDITIONAL, "sigmoid"),  # the union of the paper
    ("joint", datasets.Dataset.from_list(JOINT + JOINT[:1]), "hinge"),
    ("response", UNION, "sigmoid"),  # the prompt-masked arm on joint pairs
])  # fmt: skip
def test_ten_steps(tmp_path, scope, records, loss):
    trainer, expected = theirs(tmp_path, records, scope=scope, loss_type=[loss], template="spaced")
    own, history = ours(tmp_path, [dict(record) for record in records], scope=scope, loss=loss, template="spaced")
    rows = [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]
    for row, pair in zip(rows, own.pairs, strict=True):
        assert (row["prompt_ids"], row["chosen_ids"]) == (list(pair.chosen.prompt_ids), list(pair.chosen.response_ids))
        assert row["rejected_prompt_ids"] == list(pair.rejected.prompt_ids)
        assert row["rejected_ids"] == list(pair.rejected.response_ids)
    if loss == "sigmoid" and scope == "joint":
        opens_in_jpo(tmp_path, trainer, own)
    assert expected["loss"][0] - min(expected["loss"]) >= 0.02, "the learning rate has to move the loss"
    for name in METRICS:
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_precomputed_reference_and_evaluation(tmp_path):
    trainer, expected = theirs(tmp_path / "a", UNION, template="raw", precompute_ref_log_probs=True)
    _, plain = theirs(tmp_path / "b", UNION, template="raw")
    np.testing.assert_allclose(expected["loss"], plain["loss"], rtol=1e-5)
    found = trainer.evaluate(trainer.train_dataset)
    assert trainer.evaluate([CONDITIONAL[0]])["eval_loss"] > 0
    assert np.isfinite(found["eval_loss"]) and found["eval_loss"] < plain["loss"][0]


def test_lemma_d1_equal_instructions_train_alike_in_both_scopes(tmp_path):
    _, joint = theirs(tmp_path / "a", CONDITIONAL * 4, scope="joint")
    _, response = theirs(tmp_path / "b", CONDITIONAL * 4, scope="response")
    np.testing.assert_allclose(joint["loss"], response["loss"], rtol=1e-4)


def test_what_cannot_work_is_named(tmp_path):
    hf, values = write_random(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    with pytest.raises(JpoError, match="scope: expected one of joint, response"):
        JPOConfig(str(tmp_path), scope="prompt", use_cpu=True, bf16=False)
    model = peer_of(hf, values)
    with pytest.raises(JpoError, match="args: expected a jpo.torch.JPOConfig"):
        JPOTrainer(
            model,
            args=trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False),
            train_dataset=JOINT,
            processing_class=tokenizer,
        )
    with pytest.raises(JpoError, match="processing_class: expected a fast tokenizer"):
        JPOTrainer(model, args=config_of(tmp_path), train_dataset=JOINT, processing_class=None)
    with pytest.raises(JpoError, match="train_dataset: expected records"):
        JPOTrainer(model, args=config_of(tmp_path), train_dataset=7, processing_class=tokenizer)
    assert torch.is_tensor(next(model.parameters()))
