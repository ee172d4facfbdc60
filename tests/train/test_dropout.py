"""Dropout before the adapter: a mask follows from the run's seed, the step, the module and the row's own text and
position, so that no cut of a step into small batches, no shared prompt and no resumption changes a result."""

import numpy as np
import pytest

import jpo
from jpo.data.forest import build_forest
from jpo.train.config import PreferenceConfig, SFTConfig

PROMPT = tuple(range(5, 17))
SEQUENCES = [(PROMPT, (30, 31, 32, 33)), (PROMPT, (40, 41)), (PROMPT[:-1], (16, 30, 31)), ((), (7, 8, 9, 7, 8))]
BUDGETS = (1, 60, 100_000)  # a pair a pass; some together; the whole step
PAIRS = [
    {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Six."},
    {"prompt": "Name a colour.", "chosen": "Green, I think.", "rejected": "Seven"},
    {"i_chosen": "Count.", "r_chosen": "One two.", "i_reject": "Say hello.", "r_reject": "No."},
    {"i_chosen": "Say hello.", "r_chosen": "Hello!", "i_reject": "Count.", "r_reject": "Blue."},
]


def adapted(dropout=0.3, modules="all-linear"):
    lm = jpo.load("tiny")
    lm.add_lora(r=4, lora_dropout=dropout, target_modules=modules)
    lm.trainable.params[:] = np.random.default_rng(0).normal(size=lm.trainable.params.size) * 0.05
    return lm


def logps(lm, sequences, seed):
    forest = build_forest(sequences, "joint")
    return forest.sequence_sums(lm.forward(forest, dropout_seed=seed).logps)


def test_a_sequence_has_one_mask_wherever_it_stands():
    lm = adapted()
    alone = np.concatenate([logps(lm, [sequence], 3) for sequence in SEQUENCES])
    assert np.allclose(logps(lm, SEQUENCES, 3), alone, atol=2e-5)
    assert np.allclose(logps(lm, SEQUENCES[::-1], 3), alone[::-1], atol=2e-5)
    assert np.allclose(logps(lm, [SEQUENCES[1]] * 3, 3), alone[1], atol=2e-5)  # equal sequences share their rows
    assert np.abs(alone - np.concatenate([logps(lm, [sequence], 4) for sequence in SEQUENCES])).min() > 1e-3
    plain = lm.sequence_logps_ids(SEQUENCES, scope="joint")
    assert np.abs(alone - plain).min() > 1e-3


def mask(lm, seed, layer, prompt):
    """(F,) bool: which inputs of a layer's down projection the adapter does not see at the prompt's last row."""
    forest = build_forest([(prompt, (3,))], "response")
    lm.trainable.grads[:] = 0
    scores = lm.forward(forest, keep=True, dropout_seed=seed)
    lm.backward(np.ones(len(scores.logps)))
    return (lm.trainable.gradients()[f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_A.weight"] == 0).all(0)


def test_masks_differ_by_step_text_and_position_and_drop_their_share():
    lm = adapted(dropout=0.4, modules="down_proj")
    last = lm.config["num_hidden_layers"] - 1  # above it nothing mixes rows: its gradient is of the loss row alone
    masks = [mask(lm, seed, last, prompt) for seed in range(8) for prompt in ((9,), (10,), (9, 9), (9, 9, 9), (5, 9))]
    count = masks[0].size
    spread = 5 * np.sqrt(0.24 / count)  # five standard deviations
    for one in masks:
        assert abs(one.mean() - 0.4) < spread
    # independent masks of share 0.4 agree in 0.52 of their places
    agree = [(a == b).mean() for i, a in enumerate(masks) for b in masks[:i]]
    assert abs(np.mean(agree) - 0.52) < 0.01 and max(agree) < 0.52 + 6 * np.sqrt(0.25 / count)
    assert np.array_equal(masks[0], mask(lm, 0, last, (9,)))


def test_layers_have_masks_of_their_own():
    lm = adapted(dropout=0.4, modules="down_proj")
    layers = [mask(lm, 1, layer, (9,)) for layer in range(lm.config["num_hidden_layers"])]
    assert all((a != b).mean() > 0.2 for i, a in enumerate(layers) for b in layers[:i])


@pytest.mark.parametrize(
    ("loss", "scope"), [("sigmoid", "joint"), ("sigmoid", "response"), ("aot", "response"), ("kto", "joint")]
)
def test_the_gradient_does_not_depend_on_the_cut(loss, scope):
    results = []
    for budget in BUDGETS:
        lm = adapted()
        config = PreferenceConfig(
            loss=loss, scope=scope, batch_size=4, steps=1, token_budget=budget, warmup_steps=0, seed=5
        )
        results.append(jpo.PreferenceTrainer(lm, PAIRS, config).loss_and_gradients(PAIRS))
    for metrics, gradients in results[1:]:
        assert metrics["loss"] == pytest.approx(results[0][0]["loss"], rel=1e-5)
        for key, gradient in results[0][1].items():
            # float32 sums over another order of rows: 1e-5 of the largest value, as without dropout
            assert np.abs(gradient - gradients[key]).max() <= 1e-5 * np.abs(gradient).max() + 1e-9, key


def sft(budget, **changes):
    lm = adapted()
    examples = [{"instruction": f"Say {word}.", "response": f"{word} {word}"} for word in "one two three four".split()]
    settings = {"batch_size": 4, "steps": 4, "token_budget": budget, "learning_rate": 1e-3, "seed": 5} | changes
    return lm, jpo.SFTTrainer(lm, examples, SFTConfig(**settings))


def preference(budget, **changes):
    lm = adapted()
    settings = {"batch_size": 4, "steps": 4, "token_budget": budget, "warmup_steps": 0, "seed": 5} | changes
    return lm, jpo.PreferenceTrainer(lm, PAIRS, PreferenceConfig(**settings))


def close(params, other, start):
    """Adapters that differ by rounding alone: 1e-3 of the way that training went (AdamW divides by small moments)."""
    moved = np.abs(params - start).max()
    return moved > 1e-4 and np.abs(params - other).max() < 1e-3 * moved


@pytest.mark.parametrize("make", [sft, preference], ids=["sft", "preference"])
def test_training_gives_the_same_adapter_for_every_token_budget(make):
    start = adapted().trainable.params.copy()
    adapters = []
    for budget in BUDGETS:
        lm, trainer = make(budget)
        trainer.train()
        adapters.append(lm.trainable.params.copy())
    assert close(adapters[0], adapters[1], start) and close(adapters[0], adapters[2], start)
    lm, trainer = make(BUDGETS[0], seed=6)
    trainer.train()
    assert not close(adapters[0], lm.trainable.params, start)


@pytest.mark.parametrize("make", [sft, preference], ids=["sft", "preference"])
def test_a_run_resumes_under_another_token_budget(make, tmp_path):
    start = adapted().trainable.params.copy()
    lm, trainer = make(100_000)
    trainer.train()
    whole = lm.trainable.params.copy()
    make(100_000, output=str(tmp_path / "out"), save_steps=1)[1].train(callbacks=[_StopAfter(2)])
    lm, trainer = make(1, output=str(tmp_path / "out"), save_steps=1)
    history = trainer.train(resume=True)
    assert history["step"] == [1, 2, 3, 4]
    assert close(whole, lm.trainable.params, start)


class _StopAfter(jpo.train.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_log(self, run, row):
        run.stop = row["step"] == self.steps
