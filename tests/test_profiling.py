"""JPO_PROFILE: what is counted, and the table."""

import os
import subprocess
import sys

import pytest

import jpo
from jpo import profiling


def test_counts_follow_the_passes():
    lm = jpo.load("tiny")
    assert lm._core.profile(True) == {}
    lm.sequence_logps(["a b c"], [" d e"])
    counted = lm._core.profile(False)
    layers, c = lm.config["num_hidden_layers"], lm.config
    groups = 4  # of products that share their input: q k v, o, gate up, down
    assert counted["linear"][0] == groups * layers and counted["attention"][0] == layers and counted["head"][0] == 1
    rows = len(lm.tokenizer.encode("a b c")) + len(lm.tokenizer.encode(" d e")) + 1 + lm.tokenizer.adds_bos
    width = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    per_row = 2 * c["hidden_size"] * (2 * width[0] + 2 * width[1] + 3 * c["intermediate_size"])
    assert counted["linear"][2] == pytest.approx(layers * per_row * rows, rel=0.2)  # the last token may not be a row
    lm.sequence_logps(["a b c"], [" d e"])
    assert lm._core.profile(False) == {}  # off again


def test_table_gives_shares_and_speeds():
    text = profiling.table("m", {"linear": (2, 3.0, 6e9), "norm": (1, 1.0, 0.0)}, wall=5.0, peak=4.0)
    head, _, linear, norm = text.splitlines()
    assert "4.00 s in operators of 5.00 s" in head
    assert linear.split() == ["linear", "2", "3.000", "75.0%", "2", "50%"]
    assert norm.split() == ["norm", "1", "1.000", "25.0%", "-", "-"]


def test_environment_asks_for_it():
    code = "import jpo; jpo.load('tiny').sequence_logps(['a'], [' b'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "JPO_PROFILE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "attention" in done.stderr and "GF/s" in done.stderr


def test_a_dry_run_says_what_each_compute_type_would_take():
    trainer = jpo.PreferenceTrainer(jpo.load("tiny"), "example", jpo.PreferenceConfig(batch_size=4))
    found = trainer.dry_run()
    costs = found["step_seconds_by_compute"]
    assert set(costs) == {"float32", "int16", "bfloat16", "bfloat16x2", "bfloat16x3"}
    assert costs["float32"] == pytest.approx(found["step_seconds"], abs=1e-4)  # its own type: as measured
    for compute, cost in costs.items():
        assert isinstance(cost, str) and compute in cost or cost > 0
    assert not trainer.lm.trainable.grads.any()


def test_a_config_is_held_to_the_models_compute_type():
    config = jpo.PreferenceConfig(compute="int16")
    with pytest.raises(jpo.JpoError, match="the config says 'int16', but the model was loaded with 'float32'"):
        jpo.PreferenceTrainer(jpo.load("tiny"), "example", config)
    assert jpo.PreferenceTrainer(jpo.load("tiny"), "example").config.compute == "float32"
    with pytest.raises(jpo.JpoError, match="compute: expected one of float32, int16, .*auto, got 'int8'"):
        jpo.PreferenceConfig(compute="int8")
