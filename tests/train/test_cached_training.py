"""Training out of the cache: the same bits as in memory, whatever the loss; resumed with or without it; flat memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import jpo
from jpo.errors import JpoError
from jpo.train.common import all_tokens
from jpo.train.loop import fingerprint

JUDGED = [{"prompt": f"Say {i}", "completion": f"{i}, well", "label": i % 3 > 0} for i in range(24)]
PAIRS = [{"prompt": f"Q{i}?", "chosen": f"yes {i}" * (1 + i % 3), "rejected": f"no {i}"} for i in range(16)]
SFT = [{"instruction": f"Add {i} and {i}", "response": str(2 * i)} for i in range(24)]
SWAPPED = [
    {"i_chosen": f"{a} {i}", "r_chosen": f"r{i}", "i_reject": f"{b} {i}", "r_reject": f"s{i}"}
    for i in range(8)
    for a, b in (("do", "undo"), ("undo", "do"))
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(data, evaluation=None, **options):
    lm = jpo.load("tiny")
    config = jpo.PreferenceConfig(**{"steps": 2, "batch_size": 4, "token_budget": 300, "max_length": 64, **options})
    trainer = jpo.PreferenceTrainer(lm, data, config, evaluation)
    history = trainer.train()
    for column in ("step_seconds", "peak_rss_gb"):
        del history[column]
    return history, np.array(lm.trainable.params), trainer


@pytest.mark.parametrize(
    "data, options",
    [
        (PAIRS, {"loss": "rpo"}),
        (PAIRS, {"loss": "sigmoid,sft", "scope": "response", "truncation": "drop"}),
        (PAIRS, {"precompute_ref_log_probs": True, "use_weighting": True}),
        (JUDGED + PAIRS[:8], {"loss": "kto"}),
        (SWAPPED, {"loss": "iopo"}),
    ],
)
def test_same_bits_as_in_memory(tmp_path, data, options):
    source = write(tmp_path / "data.jsonl", data)
    plain, params, before = trained(source, {"held": source}, **options)
    cached, same, after = trained(source, {"held": source}, cache_dir=str(tmp_path / "cache"), **options)
    assert cached == plain and np.array_equal(params, same)
    assert after.told == before.told  # `shown` is the first record: of the file, or of its pairs
    assert after.memory == before.memory and all_tokens(after.pairs) == all_tokens(before.pairs)


@pytest.mark.parametrize("at_once", [1 << 14, 7])
def test_sft(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("jpo.train.sft._AT_ONCE", at_once)
    path = write(tmp_path / "sft.jsonl", SFT)
    found = []
    for cache in (None, str(tmp_path / "cache")):
        trainer = jpo.SFTTrainer(jpo.load("tiny"), path, jpo.SFTConfig(steps=3, batch_size=8, cache_dir=cache), path)
        history = trainer.train()
        found.append((history["loss"], history["eval_loss"], trainer.evaluate(), trainer.told, trainer.shown))
    assert found[0] == found[1]
    assert found[0][2]["eval_num_tokens"] == sum(map(len, trainer.examples))
    whole = trainer._run(trainer.examples[:], 0, train=False)["loss"]
    assert found[0][2]["eval_loss"] == pytest.approx(whole, rel=1e-6)


def test_resumes_with_and_without(tmp_path):
    """A run begun in memory goes on out of a cache, and the other way; each ends as the undisturbed one."""
    data = write(tmp_path / "data.jsonl", PAIRS)
    _, whole, _ = trained(data, steps=4)
    for turn, first in enumerate((None, str(tmp_path / "cache"))):
        second = None if first else str(tmp_path / "cache")
        options = {"save_steps": 2, "output": str(tmp_path / f"run{turn}"), "steps": 4}
        lm = jpo.load("tiny")
        config = jpo.PreferenceConfig(batch_size=4, token_budget=300, max_length=64, cache_dir=first, **options)

        def stop(row):
            if row["step"] == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            jpo.PreferenceTrainer(lm, data, config).train(callbacks=[stop])
        lm = jpo.load("tiny")
        config = jpo.PreferenceConfig(batch_size=4, token_budget=300, max_length=64, cache_dir=second, **options)
        jpo.PreferenceTrainer(lm, data, config).train(resume=True)
        assert np.array_equal(lm.trainable.params, whole)


def test_a_run_of_an_earlier_version_keeps_its_order(tmp_path, monkeypatch):
    """Above LARGE records a new run is shuffled otherwise; a checkpoint that does not say so goes on as it began."""
    data = write(tmp_path / "data.jsonl", PAIRS)
    _, old, _ = trained(data, steps=4, save_steps=2, output=str(tmp_path / "old"))
    monkeypatch.setattr("jpo.data.batches.LARGE", 8)
    _, new, trainer = trained(data, steps=4, save_steps=2, output=str(tmp_path / "new"))
    assert not np.array_equal(old, new)
    assert fingerprint(trainer.config, "", trainer._order())["order"] == "feistel"
    for name, expected in (("old", old), ("new", new)):
        lm = jpo.load("tiny")
        options = {"steps": 4, "save_steps": 2, "output": str(tmp_path / name)}
        config = jpo.PreferenceConfig(batch_size=4, token_budget=300, max_length=64, **options)
        jpo.PreferenceTrainer(lm, data, config).train(resume=True)
        assert np.array_equal(lm.trainable.params, expected)


def test_what_losses_cannot_learn_from_is_said_each_time(tmp_path):
    ties = write(tmp_path / "ties.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "tie": True}])
    judged = write(tmp_path / "judged.jsonl", JUDGED)
    for _ in range(2):  # the second time out of the cache
        with pytest.raises(JpoError, match=r"ties.jsonl, line 1: is a tie \(one of 1 in 1 records\)"):
            trained(ties, cache_dir=str(tmp_path / "cache"))
        with pytest.raises(JpoError, match=r"judged.jsonl, line 1: .* has no second response"):
            trained(judged, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(JpoError, match="rpo_embeddings: are looked up by the instructions' texts"):
        trained("example", loss="rpo", rpo_embeddings="numpy:ones", cache_dir=str(tmp_path / "cache"))


PEAK = """
import json, sys
import numpy as np
sys.path.insert(0, "tests")
from peak_memory import Growth
import jpo
lm = jpo.load("tiny")
def run(count, path, folder):
    with open(path, "w") as file:
        for i in range(count):
            file.write(json.dumps({"instruction": f"{i} + {i % 89} =", "response": str(i + i % 89)}) + "\\n")
    growth = Growth()
    config = jpo.SFTConfig(steps=10, batch_size=64, cache_dir=folder, template="spaced")
    trainer = jpo.SFTTrainer(lm, path, config)
    trainer.train(callbacks=[])
    assert len(trainer.examples) == count
    return growth.end()
run(2000, sys.argv[1] + "/warm.jsonl", sys.argv[1] + "/cache")
print(json.dumps([run(count, f"{sys.argv[1]}/{count}.jsonl", sys.argv[1] + "/cache") for count in (10_000, 100_000)]))
"""


def test_memory_is_flat_in_the_number_of_records(tmp_path):
    """From 10^4 to 10^5 records; in memory the latter take 60 MB more."""
    from peak_memory import available

    if not available():
        pytest.skip("needs Linux's /proc/self/clear_refs")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout.splitlines()[-1])
    assert large < small + (16 << 20)
