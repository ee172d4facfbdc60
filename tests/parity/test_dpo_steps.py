"""Ten DPO steps in TRL and here: one saved adapter with A and B nonzero, reference adapter-off, equal token ids."""

import datasets
import numpy as np
import peft
import transformers
import trl
from parity.peers import METRICS, peer_of, smollm2_values
from reference.models import adapter_of, write_random

import jpo
from jpo.formats import load_checkpoint, write_checkpoint

STEPS = 10
# what every step says: those of METRICS, and the means and counts over tokens
EVERY = [
    *METRICS,
    "rewards/accuracies",
    "logits/chosen",
    "logits/rejected",
    "entropy",
    "mean_token_accuracy",
    "num_tokens",
]
PAIRS = [
    ("Name a colour.", " Blue is a colour.", " I would rather talk about boats and the sea."),
    ("Add 2 and 3.", " 5", " The answer is 6, as every child knows."),
    ("Where do bees live?", " In hives, which they build of wax.", " In the sea."),
    ("Say hello.", " Hello!", " No."),
]
RECORDS = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]


def trl_steps(folder, output, model, reference, rate):
    """(log of each step, token ids of each pair as TRL made them)"""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = trl.DPOConfig(
        output_dir=str(output), per_device_train_batch_size=len(PAIRS), max_steps=STEPS, learning_rate=rate, beta=0.1,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, max_length=None,
        logging_steps=1, save_strategy="no", report_to=[], bf16=False, fp16=False, use_cpu=True, seed=0,
        gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False, adam_beta1=0.9, adam_beta2=0.999,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model, ref_model=reference, args=config, train_dataset=datasets.Dataset.from_list(RECORDS),
        processing_class=tokenizer,
    )  # fmt: skip
    ids = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert len(log) == STEPS
    return {name: [entry[name] for entry in log] for name in EVERY}, ids


def our_steps(lm, rate):
    """The same through PreferenceTrainer, whose template puts one space before the response and adds nothing else."""
    config = jpo.PreferenceConfig(
        scope="response", loss="sigmoid", beta=0.1, batch_size=len(PAIRS), steps=STEPS, learning_rate=rate,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999,
        max_grad_norm=1.0, template="{instruction} {response}",
    )  # fmt: skip
    records = [{name: text.removeprefix(" ") for name, text in record.items()} for record in RECORDS]
    return jpo.PreferenceTrainer(lm, records, config).train()


def compare(history, theirs):
    assert theirs["loss"][0] - min(theirs["loss"]) >= 0.05, "the learning rate has to move TRL's loss"
    for name in EVERY:
        ours, expected = np.asarray(history[name], float), np.asarray(theirs[name], float)
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3, err_msg=name)


def check_ids(lm, ids):
    """TRL's ids are those that we train on: no merge crosses the boundary here, EOS stands behind the response."""
    for (prompt, *responses), given in zip(PAIRS, ids):
        encode = lm.tokenizer.encode
        expected = [encode(prompt), *([*encode(text), lm.tokenizer.eos_token_id] for text in responses)]
        assert [list(part) for part in given] == expected


def test_random_model(tmp_path):
    hf, values = write_random(tmp_path / "base")
    adapter_of(tmp_path / "adapter", values)
    model = peft.PeftModel.from_pretrained(peer_of(hf, values), tmp_path / "adapter", is_trainable=True)
    theirs, ids = trl_steps(tmp_path / "base", tmp_path / "trl", model, peer_of(hf, values), 2e-3)
    lm = jpo.load(str(tmp_path / "base"), storage="float32")
    lm.load_adapter(str(tmp_path / "adapter"))
    check_ids(lm, ids)
    compare(our_steps(lm, 2e-3), theirs)


def test_smollm2(tmp_path):
    checkpoint = load_checkpoint("smollm2-135m")
    values = smollm2_values(checkpoint)
    write_checkpoint(tmp_path / "base", checkpoint.config, values, checkpoint.tokenizer)
    adapter_of(tmp_path / "adapter", values, r=8, scale=0.02)
    hf = checkpoint.config["hf"]
    model = peft.PeftModel.from_pretrained(peer_of(hf, values), tmp_path / "adapter", is_trainable=True)
    theirs, ids = trl_steps(tmp_path / "base", tmp_path / "trl", model, peer_of(hf, values), 1e-4)
    del model
    lm = jpo.load("smollm2-135m")
    lm.load_adapter(str(tmp_path / "adapter"))
    check_ids(lm, ids)
    compare(our_steps(lm, 1e-4), theirs)
