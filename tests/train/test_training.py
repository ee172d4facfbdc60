"""Trainers on the tiny model: losses fall, cuts do not matter, runs resume to the bit, bad options are named."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import jpo
from jpo.data.forest import build_forest
from jpo.data.records import preference_pairs
from jpo.errors import JpoError
from jpo.objectives import LOSSES
from jpo.train.config import PreferenceConfig, SFTConfig
from jpo.train.optimizer import learning_rate
from tests.killed import killed_when

METRICS = {
    "step", "loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/accuracies",
    "rewards/margins", "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected", "entropy",
    "mean_token_accuracy", "num_tokens", "rows_computed", "step_seconds", "peak_rss_gb",
}  # fmt: skip


def config(**changes):
    base = {"batch_size": 8, "steps": 3, "warmup_steps": 1, "learning_rate": 1e-3}
    return PreferenceConfig(**(base | changes))


def needs(name):
    return {"label_smoothing": 0.1} if name == "exo_pair" else {}


def random_adapter(lm, seed=0):
    lm.add_lora(r=4, target_modules="all-linear")
    lm.trainable.params[:] = np.random.default_rng(seed).normal(size=lm.trainable.params.size) * 0.05


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_do_not_depend_on_the_cut(name):
    lm = jpo.load("tiny")
    random_adapter(lm)
    trainer = jpo.PreferenceTrainer(lm, "example", config(loss=name, **needs(name)))
    whole, gradients = trainer.loss_and_gradients("example")
    trainer.config.token_budget = 150
    cut, others = trainer.loss_and_gradients("example")
    assert whole["loss"] == pytest.approx(cut["loss"], rel=1e-5)
    for key, gradient in gradients.items():
        assert np.abs(gradient - others[key]).max() <= 1e-5 * np.abs(gradient).max() + 1e-9, key


@pytest.mark.parametrize("modules", ["all-linear", "q_proj", "down_proj", "full"])
def test_gradient_checkpointing_changes_memory_alone(modules):
    lm = jpo.load("tiny")
    if modules == "full":
        lm.enable_full()
    else:
        lm.add_lora(r=4, lora_dropout=0.2, target_modules=modules)
        lm.trainable.params[:] = np.random.default_rng(0).normal(size=lm.trainable.params.size) * 0.05
    forest = build_forest([((5, 6, 7), tuple(range(8, 40))), ((5, 6, 9), tuple(range(10, 30)))], "joint")
    results, sizes = [], []
    for on in (False, True, False):
        lm._core.set_recompute(on)
        lm.trainable.grads[:] = 0
        scores = lm.forward(forest, keep=True, dropout_seed=3)
        lm.backward(np.linspace(-1, 1, len(scores.logps)))
        results.append((scores.logps.copy(), lm.trainable.grads.copy()))
        sizes.append(lm.pass_bytes(forest, True))
    assert np.abs(results[0][1]).max() > 0
    for logps, gradients in results[1:]:
        assert np.array_equal(results[0][0], logps) and np.array_equal(results[0][1], gradients)
    assert sizes[1] < 0.8 * sizes[0] == 0.8 * sizes[2]


def test_the_trainer_asks_for_gradient_checkpointing():
    def size(**options):
        lm = jpo.load("tiny")
        return jpo.PreferenceTrainer(lm, "example", config(**options)).dry_run()["buffers_gb"]

    assert size(gradient_checkpointing=True) < size()


@pytest.mark.parametrize("name", ["sigmoid", "kto", "rpo", "orpo", "sft", "aot"])
def test_gradient_is_the_losses_slope(name):
    lm = jpo.load("tiny")
    random_adapter(lm)
    trainer = jpo.PreferenceTrainer(lm, "example", config(loss=name))
    _, gradients = trainer.loss_and_gradients("example")
    flat = np.concatenate([gradients[key].ravel() for key in lm.trainable.names]).astype(np.float64)
    direction = np.random.default_rng(1).normal(size=flat.size).astype(np.float32)
    start, ends = lm.trainable.params.copy(), []
    for sign in (1, -1):
        lm.trainable.params[:] = start + np.float32(sign * 2e-4) * direction
        ends.append(trainer.loss_and_gradients("example")[0]["loss"])
    # kto's reference point is detached: its slope is not part of the gradient
    tolerance = 0.1 if name == "kto" else 5e-3
    assert flat @ direction == pytest.approx((ends[0] - ends[1]) / 4e-4, rel=tolerance, abs=2e-3)


def test_metrics_and_history(tmp_path):
    lm = jpo.load("tiny")
    trainer = jpo.PreferenceTrainer(lm, "example", config(output=str(tmp_path / "out"), steps=4), "example")
    assert not (tmp_path / "out").exists()
    history = trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] == history["step"]
    assert set(rows[0]) >= METRICS
    assert "eval_loss" in rows[-1]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-12)
    assert rows[-1]["num_tokens"] == sum(pair.tokens for pair in trainer.pairs)
    assert all(len(column) == 4 for column in history.values())
    assert (tmp_path / "out/adapter_model.safetensors").is_file()


def test_training_raises_the_margin():
    lm = jpo.load("tiny")
    trainer = jpo.PreferenceTrainer(lm, "example", config(steps=30, batch_size=32, learning_rate=3e-3))
    assert trainer.train()["rewards/margins"][-1] > 0.1


def test_reference_can_be_cached():
    histories = []
    for cached in (False, True):
        lm = jpo.load("tiny")
        trainer = jpo.PreferenceTrainer(lm, "example", config(precompute_ref_log_probs=cached))
        histories.append(trainer.train()["loss"])
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-5)


def test_cached_references_do_not_depend_on_the_neighbours():
    """A prompt that one pair shares and another pair does not, met in different micro-batches."""
    pairs = [
        {"prompt": "one two three", "chosen": "four", "rejected": "five six"},
        {"i_chosen": "one two three", "r_chosen": "seven", "i_reject": "eight", "r_reject": "nine ten"},
        {"prompt": "eleven", "chosen": "twelve", "rejected": "x"},
    ]
    losses = []
    for cached in (False, True):
        lm = jpo.load("tiny")
        random_adapter(lm)
        trainer = jpo.PreferenceTrainer(
            lm, pairs, config(precompute_ref_log_probs=cached, token_budget=60, steps=4, batch_size=2)
        )
        losses.append(trainer.train()["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_from_the_start(name):
    history = jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(loss=name, batch_size=4, **needs(name))).train()
    assert len(history["loss"]) == 3 and np.isfinite(history["loss"]).all()


def test_joint_equals_response_on_equal_instructions():
    """Lemma D.1 through the model: shared prompts cancel, with unequal lengths."""
    pairs = [
        {"prompt": "one two", "chosen": "three", "rejected": "four five six"},
        {"prompt": "seven", "chosen": "eight nine ten eleven", "rejected": "x"},
    ]
    results = []
    for scope in ("joint", "response"):
        lm = jpo.load("tiny")
        random_adapter(lm)
        results.append(jpo.PreferenceTrainer(lm, pairs, config(scope=scope, full_logps=True)).loss_and_gradients(pairs))
    assert results[0][0]["loss"] == pytest.approx(results[1][0]["loss"], rel=1e-5)
    for key, gradient in results[0][1].items():
        assert np.abs(gradient - results[1][1][key]).max() <= 1e-5 * np.abs(gradient).max(), key


def test_sft_full_learns():
    lm = jpo.load("tiny")
    examples = [{"instruction": "say", "response": "hello there"}] * 4
    trainer = jpo.SFTTrainer(lm, examples, SFTConfig(full=True, steps=10, batch_size=4, learning_rate=3e-3))
    losses = trainer.train()["loss"]
    assert losses[-1] < 0.5 * losses[0]


def command(output, *more):
    return [sys.executable, "-m", "jpo", "train", "--model", "tiny", "--data", "example", "--output", str(output), "--steps",
            "40", "--batch-size", "4", "--save-steps", "3", "--warmup-steps", "2", "--learning-rate", "0.001",
            "--lora-dropout", "0.1", *more]  # fmt: skip


def test_kill_and_resume_gives_the_same_bytes(tmp_path):
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    cut, rng, kills = tmp_path / "cut", random.Random(0), 0
    for step in (3, 9, 18):
        kills += killed_when(command(cut, "--resume"), (cut / f"checkpoint-{step}").exists, rng.random() * 0.05)
    assert kills
    subprocess.run(command(cut, "--resume"), check=True, capture_output=True)
    name = "adapter_model.safetensors"
    assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))


def test_interrupt_leaves_a_checkpoint(tmp_path):
    child = subprocess.Popen(
        [*command(tmp_path / "out"), "--steps", "100000", "--save-steps", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # a shell's background jobs ignore Ctrl-C, and so would a child of tests that run in one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "out/metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)  # the steps that are left would take many times that
    assert child.returncode == 130 and b"--resume" in errors
    assert any(name.startswith("checkpoint-") for name in os.listdir(tmp_path / "out"))


def test_used_output_and_changed_options_are_refused(tmp_path):
    out = str(tmp_path / "out")
    jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(output=out, save_steps=1)).train()
    with pytest.raises(JpoError, match="--resume"):
        jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(output=out)).train()
    with pytest.raises(JpoError, match="beta"):
        jpo.PreferenceTrainer(jpo.load("tiny"), "example", config(output=out, beta=0.2)).train(resume=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bata": 1}, "did you mean 'beta'"),
        ({"beta": 0}, "beta"),
        ({"beta": "x"}, "beta"),
        ({"loss": "dpo"}, "loss"),
        ({"scope": "all"}, "scope"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps": 1, "epochs": 1}, "steps and epochs"),
        ({"lr_scheduler_type": "step"}, "lr_scheduler_type"),
        ({"warmup_steps": True}, "warmup_steps"),
    ],
)
def test_bad_options(values, message):
    with pytest.raises(JpoError, match=message):
        PreferenceConfig.from_dict(values)


def test_schedules():
    cosine = [learning_rate(config(learning_rate=1.0), step, 11, 1) for step in range(11)]
    assert cosine[0] == 0 and cosine[1] == 1 and cosine[6] == pytest.approx(0.5)
    linear = config(learning_rate=1.0, lr_scheduler_type="linear")
    assert learning_rate(linear, 6, 11, 1) == pytest.approx(0.5)
    assert learning_rate(config(learning_rate=1.0, lr_scheduler_type="constant"), 9, 11, 1) == 1


def test_pairs_and_records_may_stand_in_one_list():
    records = [dict(i_chosen=f"i {n}", r_chosen=f"good {n}", i_reject=f"i {n}", r_reject=f"bad {n}") for n in range(4)]
    mixed = [*preference_pairs(records[:2]), *records[2:]]
    for given in (mixed, mixed[::-1]):
        trainer = jpo.PreferenceTrainer(jpo.load("tiny"), given, config())
        assert len(trainer.pairs) == 4 and trainer.evaluate(given)["eval_loss"] == pytest.approx(np.log(2))


def test_iopo_trains_swapped_pairs_in_one_step():
    pairs = []
    for i in range(6):
        one, other = (f"Instruction {i}", f"Answer {i}"), (f"Instruction {i + 10}", f"Answer {i + 10}")
        for mine, theirs in ((one, other), (other, one)):
            pairs.append(dict(i_chosen=mine[0], r_chosen=mine[1], i_reject=theirs[0], r_reject=mine[1]))
    shuffled = pairs[::2] + pairs[1::2]
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), shuffled, jpo.PreferenceConfig(loss="iopo", batch_size=4))
    order = trainer._order()
    for step in range(order.steps_per_epoch):
        batch = [trainer.pairs[index] for index in order.batch(step)]
        prompts = {(pair.chosen.prompt_ids, pair.rejected.prompt_ids) for pair in batch}
        assert all((b, a) in prompts for a, b in prompts)
