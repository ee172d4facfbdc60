"""Ten KTO steps in TRL and here, over unpaired records: one saved adapter with A and B nonzero, reference adapter-off.

The whole set is one batch, so that the reference point, which TRL takes over each batch's completions rotated by one,
is over the same set.
"""

import datasets
import numpy as np
import peft
import pytest
import transformers
import trl
from parity.peers import METRICS, peer_of
from reference.models import adapter_of, write_random

import jpo

STEPS = 10
RECORDS = [
    {"prompt": "Name a colour.", "completion": " Blue is a colour.", "label": True},
    {"prompt": "Name a colour.", "completion": " I would rather talk about boats and the sea.", "label": False},
    {"prompt": "Add 2 and 3.", "completion": " 5", "label": True},
    {"prompt": "Where do bees live?", "completion": " In hives, which they build of wax.", "label": True},
    {"prompt": "Say hello.", "completion": " No.", "label": False},
]


def trl_steps(folder, output, model, reference, rate, weights):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = trl.KTOConfig(
        output_dir=str(output), per_device_train_batch_size=len(RECORDS), max_steps=STEPS, learning_rate=rate, beta=0.3,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, max_length=None,
        logging_steps=1, save_strategy="no", report_to=[], bf16=False, fp16=False, use_cpu=True, seed=0,
        gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False, adam_beta1=0.9, adam_beta2=0.999,
        train_sampling_strategy="sequential", desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    trainer = trl.KTOTrainer(
        model, ref_model=reference, args=config, train_dataset=datasets.Dataset.from_list(RECORDS),
        processing_class=tokenizer,
    )  # fmt: skip
    ids = [(row["prompt_ids"], row["completion_ids"]) for row in trainer.train_dataset]
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert len(log) == STEPS
    return {name: [entry[name] for entry in log] for name in [*METRICS, "kl"]}, ids


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.8)])
def test_ten_steps(tmp_path, weights):
    hf, values = write_random(tmp_path / "base")
    adapter_of(tmp_path / "adapter", values, seed=10, scale=0.05)  # a reference point above 0 from the first step
    model = peft.PeftModel.from_pretrained(peer_of(hf, values), tmp_path / "adapter", is_trainable=True)
    theirs, ids = trl_steps(tmp_path / "base", tmp_path / "trl", model, peer_of(hf, values), 2e-3, weights)
    lm = jpo.load(str(tmp_path / "base"), storage="float32")
    lm.load_adapter(str(tmp_path / "adapter"))
    config = jpo.PreferenceConfig(
        scope="response", loss="kto", beta=0.3, batch_size=len(RECORDS), steps=STEPS, learning_rate=2e-3,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999,
        max_grad_norm=1.0, template="raw", desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    trainer = jpo.PreferenceTrainer(lm, RECORDS, config)
    ours = [(list(pair.sequences[0].prompt), list(pair.sequences[0].response)) for pair in trainer.pairs]
    assert ours == [tuple(map(list, pair)) for pair in ids]
    history = trainer.train()
    assert min(theirs["kl"]) > 0.1, "the reference point has to matter"
    assert theirs["loss"][0] - min(theirs["loss"]) >= 0.03, "the learning rate has to move TRL's loss"
    for name in METRICS:
        expected = np.asarray(theirs[name], float)
        np.testing.assert_allclose(np.asarray(history[name], float), expected, rtol=1e-3, atol=1e-3, err_msg=name)
