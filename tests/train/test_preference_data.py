"""What the preference trainer learns from beside pairs: judged examples, ties, embeddings, stored references."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

import jpo
from jpo.data.readers import write_records
from jpo.data.records import Judged, Pair
from jpo.errors import FormatError, JpoError
from jpo.parallel.shards import Shard, join

JUDGED = [{"prompt": f"Question {i}?", "completion": f"Answer {i} {'yes ' * i}", "label": i % 3 != 0} for i in range(7)]
PAIRS = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}", "rejected": f"No {'no ' * i}"} for i in range(5)]


def options(**changes):
    return jpo.PreferenceConfig(
        **{
            "batch_size": 7,
            "steps": 3,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
            "save_steps": 0,
            "scope": "response",
            **changes,
        }
    )


def model():
    lm = jpo.load("tiny")
    lm.add_lora(r=4, seed=3)
    lm.trainable.params += np.random.default_rng(0).normal(0, 0.02, lm.trainable.params.shape).astype(np.float32)
    return lm


def test_kto_learns_from_judged_examples():
    trainer = jpo.PreferenceTrainer(model(), JUDGED, options(loss="kto"), JUDGED[:3])
    assert sum(pair.chosen is None for pair in trainer.pairs) == 3
    metrics, gradients = trainer.loss_and_gradients(JUDGED)
    eps, name = 1e-2, next(key for key in gradients if ".lora_B." in key)
    view, direction = trainer.lm.trainable.view(name), gradients[name] / np.linalg.norm(gradients[name])
    ends = []
    for sign in (1, -1):  # the reference point is detached: hold it still
        z = trainer._mismatched(trainer.pairs)
        trainer._mismatched = lambda pairs, z=z: z
        view += np.float32(sign * eps) * direction
        ends.append(trainer.loss_and_gradients(JUDGED)[0]["loss"])
        view -= np.float32(sign * eps) * direction
    assert (ends[0] - ends[1]) / (2 * eps) == pytest.approx(np.linalg.norm(gradients[name]), rel=2e-2)
    del trainer.__dict__["_mismatched"]
    history = trainer.train()
    assert history["loss"][-1] < history["loss"][0] and history["eval_loss"][-1] is not None
    assert metrics["rewards/margins"] == pytest.approx(metrics["rewards/chosen"] - metrics["rewards/rejected"])


def test_a_step_of_one_label_and_the_cut():
    one = [record for record in JUDGED if record["label"]]
    trainer = jpo.PreferenceTrainer(model(), one, options(loss="kto"))
    metrics, whole = trainer.loss_and_gradients(one)
    assert "rewards/rejected" not in metrics and np.isfinite(metrics["rewards/margins"])
    cut = jpo.PreferenceTrainer(model(), one, options(loss="kto", token_budget=1))
    for name, value in cut.loss_and_gradients(one)[1].items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-3, atol=1e-6)


def test_the_reference_point_is_over_every_completion_of_the_step_once():
    trainer = jpo.PreferenceTrainer(model(), JUDGED, options(loss="kto"))
    seen = []
    trainer.lm.sequence_logps_ids = lambda mixed, **rest: seen.append(mixed) or np.zeros(len(mixed))
    trainer._mismatched(trainer.pairs[::-1])  # the order of the step does not matter
    prompts = [pair.sequences[0].prompt for pair in trainer.pairs]
    responses = [pair.sequences[0].response for pair in trainer.pairs]
    assert seen[0] == list(zip(prompts, responses[-1:] + responses[:-1], strict=True))
    paired = jpo.PreferenceTrainer(model(), PAIRS, options(loss="kto"))
    paired.lm.sequence_logps_ids = trainer.lm.sequence_logps_ids
    paired._mismatched(paired.pairs)
    assert sorted(map(bytes, (response for _, response in seen[-1]))) == sorted(
        bytes(sequence.response) for pair in paired.pairs for sequence in pair.sequences
    )


def test_judged_examples_need_kto():
    with pytest.raises(
        JpoError, match=r"records\[0\]: .* has no second response, and loss sigmoid compares two; use loss kto"
    ):
        jpo.PreferenceTrainer(model(), JUDGED, options())
    mixed = jpo.PreferenceTrainer(model(), [*PAIRS, *JUDGED], options(loss="kto"))
    assert [len(pair.sequences) for pair in mixed.pairs] == [2] * 5 + [1] * 7
    assert np.isfinite(mixed.train()["loss"]).all()
    assert len(jpo.PreferenceTrainer(model(), [Judged("I", "R", True), PAIRS[0]], options(loss="kto")).pairs) == 2


def test_ties_train_with_their_losses_alone():
    ties = [*PAIRS, {**PAIRS[0], "tie": True}]
    with pytest.raises(JpoError, match=r"is a tie \(one of 1 in 6 records\), and loss sigmoid knows none"):
        jpo.PreferenceTrainer(model(), ties, options())
    for loss in ("dpo_rk", "dpo_davidson"):
        trainer = jpo.PreferenceTrainer(model(), ties, options(loss=loss, nu=2.5))
        metrics, _ = trainer.loss_and_gradients(ties)
        (tie,) = [Pair("Question 0?", "Answer 0", "Question 0?", "No ", tie=True)]
        alone, gradients = trainer.loss_and_gradients([tie])
        assert alone["rewards/accuracies"] == 0.0 and np.isfinite(metrics["loss"])
        turned, other = trainer.loss_and_gradients([Pair("Question 0?", "No ", "Question 0?", "Answer 0", tie=True)])
        assert turned["loss"] == pytest.approx(alone["loss"])  # a tie has no first side
        for name, value in gradients.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-7)


def test_a_label_or_a_tie_that_changed_is_other_data(tmp_path):
    config = options(loss="kto", output=str(tmp_path), save_steps=1, steps=2)
    jpo.PreferenceTrainer(model(), JUDGED, config).train()
    changed = [{**JUDGED[0], "label": not JUDGED[0]["label"]}, *JUDGED[1:]]
    with pytest.raises(JpoError, match="cannot resume, because data changed"):
        jpo.PreferenceTrainer(model(), changed, options(loss="kto", output=str(tmp_path), steps=3)).train(resume=True)


def test_rpo_takes_embeddings(tmp_path, monkeypatch):
    pairs = [{"i_chosen": f"Q{i}", "r_chosen": "A", "i_reject": f"Q{(i + 1) % 4}", "r_reject": "B"} for i in range(4)]
    table = {f"Q{i}": np.eye(4)[i] + 0.1 for i in range(4)}
    write_records(
        tmp_path / "e.jsonl", [{"instruction": key, "embedding": value.tolist()} for key, value in table.items()]
    )
    config = {"loss": "rpo", "scope": "joint", "rpo_tau": 0.7}
    by_file = jpo.PreferenceTrainer(model(), pairs, options(**config, rpo_embeddings=str(tmp_path / "e.jsonl")))
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.stack([3 * table[text] for text in texts])

    by_function = jpo.PreferenceTrainer(model(), pairs, options(**config), embed=embed)
    unit = np.stack([value / np.linalg.norm(value) for value in table.values()])
    z = -(1 - unit @ unit[[1, 2, 3, 0]].T) / 0.7
    expected = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    for trainer in (by_file, by_function):
        np.testing.assert_allclose(trainer._rpo_weights(trainer.pairs), expected, rtol=1e-12)
        trainer._rpo_weights(trainer.pairs)
        assert np.isfinite(trainer.train()["loss"]).all()
    assert sorted(asked) == sorted(table)  # each once
    (tmp_path / "embedder.py").write_text(
        "import numpy as np\ndef embed(texts):\n    return np.ones((len(texts), 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    named = jpo.PreferenceTrainer(model(), pairs, options(**config, rpo_embeddings="embedder:embed"))
    np.testing.assert_allclose(named._rpo_weights(named.pairs), 0.25)
    hidden = jpo.PreferenceTrainer(model(), pairs, options(**config))  # the default
    assert not np.allclose(hidden._rpo_weights(hidden.pairs), expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "Q0", "embedding": [1.0]}], "holds no vector of the instruction 'Q1'"),
        ([{"instruction": "Q0"}], "line 1: the key embedding is missing"),
        ([{"instruction": "Q0", "embedding": [0.0]}], "line 1: embedding: expected a list of finite numbers"),
        ([{"instruction": "Q0", "embedding": "x"}], "line 1: embedding: expected a list of numbers"),
        ([{"instruction": "Q0", "embedding": [1.0]}, {"instruction": "Q1", "embedding": [1.0, 2.0]}], "vectors of 1 and of 2 numbers"),
    ],
)  # fmt: skip
def test_embeddings_that_do_not_serve(tmp_path, rows, message):
    write_records(tmp_path / "e.jsonl", rows)
    pairs = [{"i_chosen": "Q0", "r_chosen": "A", "i_reject": "Q1", "r_reject": "B"}]
    with pytest.raises(JpoError, match=message):
        trainer = jpo.PreferenceTrainer(model(), pairs, options(loss="rpo", rpo_embeddings=str(tmp_path / "e.jsonl")))
        trainer.loss_and_gradients(pairs)
    with pytest.raises(JpoError, match="loss sigmoid would ignore them"):
        jpo.PreferenceTrainer(model(), pairs, options(rpo_embeddings=str(tmp_path / "e.jsonl")))
    with pytest.raises(JpoError, match="expected a file or module:function"):
        jpo.PreferenceTrainer(model(), pairs, options(loss="rpo", rpo_embeddings="nowhere:embed"))


@pytest.mark.parametrize("scope", ["response", "joint"])
def test_references_are_kept_and_reused(tmp_path, scope):
    path = str(tmp_path / "ref.safetensors")
    plain = jpo.PreferenceTrainer(model(), PAIRS, options(scope=scope, precompute_ref_log_probs=True)).train()
    first = jpo.PreferenceTrainer(model(), PAIRS, options(scope=scope, ref_logps=path)).train()
    again = jpo.PreferenceTrainer(model(), PAIRS, options(scope=scope, ref_logps=path), PAIRS)
    passes = []
    forward = again.lm.forward
    again.lm.forward = lambda *a, **k: passes.append(k.get("adapter", True)) or forward(*a, **k)
    history = again.train()
    assert first["loss"] == plain["loss"] == history["loss"]
    assert passes and all(passes)  # the reference was never computed again
    more = [*PAIRS, {"prompt": "New", "chosen": "a", "rejected": "b"}]
    grown = jpo.PreferenceTrainer(model(), more, options(scope=scope, ref_logps=path))
    grown.precompute()
    assert len(grown._logps) == 2 * len(more)


def test_reference_files_of_shards_are_that_of_one_process(tmp_path):
    """Micro-batches are cut before they are dealt; of an interrupted shard what is there is kept; a prompt and response
    that stand in two micro-batches have the value of the first."""
    pairs = [{"prompt": f"Ask {i % 7}", "chosen": f"{i % 5}", "rejected": f"No {i}."} for i in range(24)]
    one, many = str(tmp_path / "one.safetensors"), str(tmp_path / "many.safetensors")

    def trainer(path):
        return jpo.PreferenceTrainer(model(), pairs, options(ref_logps=path, token_budget=20), pairs[:3])

    assert trainer(one).precompute() == 27
    first = trainer(many)
    kept, calls = first._reference_of, []
    first._reference_of = lambda batch: calls.append(batch) or kept(batch)
    assert first.precompute(Shard(0, 2)) > 4 and len(calls) > 2
    os.rename(Shard(0, 2).path(many), Shard(0, 2).path(many) + ".part")  # as if it were killed before its end
    calls.clear()
    first.precompute(Shard(0, 2))
    assert not calls
    trainer(many).precompute(Shard(1, 2))
    assert join(many) == 2
    assert open(one, "rb").read() == open(many, "rb").read()
    known = trainer(None)
    known.know_reference(many)
    assert known.precompute() == 0


def test_foreign_and_damaged_reference_files_are_refused_by_name(tmp_path):
    path = tmp_path / "ref.safetensors"
    jpo.PreferenceTrainer(model(), PAIRS, options(ref_logps=str(path))).precompute()
    whole = path.read_bytes()
    other = jpo.load("tiny", storage="bfloat16")
    with pytest.raises(FormatError, match="ref.safetensors: holds log-likelihoods of another model, storage"):
        jpo.PreferenceTrainer(other, PAIRS, options(ref_logps=str(path))).precompute()
    jpo.load("tiny").merge(tmp_path / "edited")
    weights = tmp_path / "edited" / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    tensors["model.embed_tokens.weight"][100, 0] += 1  # one value, far from either end and from the middle
    safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
    jpo.load("tiny").merge(tmp_path / "whole")
    here = str(tmp_path / "f.safetensors")
    jpo.PreferenceTrainer(jpo.load(tmp_path / "whole"), PAIRS, options(ref_logps=here)).precompute()
    with pytest.raises(FormatError, match="f.safetensors: holds log-likelihoods of another model"):
        jpo.PreferenceTrainer(jpo.load(tmp_path / "edited"), PAIRS, options(ref_logps=here)).precompute()
    size = int.from_bytes(whole[:8], "little")
    for damaged in (
        whole[:-3],
        whole[:100],
        b"",
        b"{}",
        whole[:-4] + b"\0\0\0\1",
        whole[: size + 9] + bytes([whole[size + 9] ^ 1]) + whole[size + 10 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="ref.safetensors: .*(damaged|no file of reference).*remove it"):
            jpo.PreferenceTrainer(model(), PAIRS, options(ref_logps=str(path))).precompute()
        assert path.read_bytes() == damaged  # left for the person to see
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(FormatError, match="holds no reference log-likelihoods of jpo"):
        jpo.PreferenceTrainer(model(), PAIRS, options(ref_logps=str(path))).precompute()


def test_the_options_are_flags_and_keys(tmp_path):
    from jpo.cli.main import main

    write_records(tmp_path / "k.jsonl", JUDGED)
    (tmp_path / "c.yaml").write_text(f"ref_logps: {tmp_path / 'r.safetensors'}\nloss: kto\n")
    arguments = [
        "train",
        "--model",
        "tiny",
        "--data",
        str(tmp_path / "k.jsonl"),
        "--steps",
        "1",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*arguments, "--config", str(tmp_path / "c.yaml")]) == 0
    assert (tmp_path / "r.safetensors").exists()
    row = json.loads((tmp_path / "o" / "metrics.jsonl").read_text())
    assert 0 < row["loss"] < 1
