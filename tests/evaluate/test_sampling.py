"""Sampling: identities, resumption to the byte, refusals, seeds and temperatures."""

import json

import pytest

import jpo
from jpo.cli.main import main
from jpo.errors import DataError, JpoError
from jpo.evaluate.items import items_of
from jpo.evaluate.sampling import Sampling, encoder_of, fingerprint, iter_samples, sample

ROWS = [{"instruction": f"Name thing {n}.", "tag": n} for n in range(40)]
FEW = Sampling(temperatures=(0.0, 1.0), seeds=(0, 1), max_new_tokens=4)


@pytest.fixture(scope="module")
def lm():
    return jpo.load("tiny")


def test_identities_never_come_from_positions():
    assert [item.id for item in items_of(ROWS)] == [item.id for item in items_of(ROWS[::-1])][::-1]
    assert [item.id for item in items_of([{"instruction": "a", "id": 7}, {"prompt": "a", "instruction_id": "x"}])] == [
        7,
        "x",
    ]
    twice = items_of([{"instruction": "a"}, {"instruction": "a"}])
    assert twice[0].id + "-2" == twice[1].id
    with pytest.raises(DataError, match="stands before at records"):
        items_of([{"instruction": "a", "id": 7}, {"instruction": "b", "id": "7"}])
    with pytest.raises(DataError, match="nothing to answer"):
        items_of([{"instruction": " "}])


def test_rows_cover_the_grid_and_agree_with_the_model(lm):
    rows = sample(lm, ROWS[:3], FEW, extra={"training_seed": 5})
    assert len(rows) == 12 and len({(r["id"], r["temperature"], r["seed"]) for r in rows}) == 12
    assert all(row["model"] == "tiny" and row["training_seed"] == 5 and row["sample"] == 0 for row in rows)
    encoder, item = encoder_of(lm), items_of(ROWS[:1])[0]
    alone = lm.generate(
        [encoder.prompt_text(item.instruction)], temperature=1.0, max_new_tokens=4, seed=1, ids=[item.number]
    )
    assert next(r for r in rows if r["id"] == item.id and r["seed"] == 1 and r["temperature"])["output"] == (
        alone[0][0].text.strip()
    )


def test_samples_belong_to_the_instruction_not_to_its_place(lm):
    some = {row["id"]: row["output"] for row in sample(lm, ROWS, Sampling(max_new_tokens=4))}
    turned = {row["id"]: row["output"] for row in sample(lm, ROWS[::-1], Sampling(max_new_tokens=4))}
    # other blocks round differently, which turns a draw that falls between two tokens
    assert sum(some[key] == turned[key] for key in some) > 37 and len(set(some.values())) > 20


def test_samples_of_one_instruction_differ(lm):
    rows = sample(lm, ROWS[:4], Sampling(n=8, max_new_tokens=8))
    assert len({(row["id"], row["output"]) for row in rows}) == 32
    for number, seed in ((2**43 - 1, 0), (2**44 - 1, -1)):  # up to the last bit of a generator's key
        (samples,) = lm.generate(["a"], n=2, seed=seed, ids=[number], max_new_tokens=8)
        assert samples[0].token_ids != samples[1].token_ids


@pytest.mark.parametrize("share", [0.0, 0.2, 0.55, 0.9])
def test_a_cut_file_is_completed_to_the_same_bytes(lm, tmp_path, share):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    steps = []
    rows = sample(lm, ROWS, FEW, output=whole, progress=lambda done, total: steps.append((done, total)))
    data = whole.read_bytes()
    assert steps[-1] == (160, 160) and len(steps) == 8
    cut.write_bytes(data[: int(share * len(data))])
    assert sample(lm, ROWS, FEW, output=cut) == rows == [json.loads(line) for line in data.splitlines()]
    assert cut.read_bytes() == data


def test_another_model_or_setting_is_refused(lm, tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    sample(lm, ROWS[:2], FEW, output=out)
    before = out.read_bytes()
    for change, message in (
        ({"settings": Sampling(top_k=5, max_new_tokens=4)}, "line 1: was sampled with top_k 0, now 5"),
        ({"settings": FEW, "model": "other"}, "model 'tiny', now 'other'"),
        ({"settings": FEW, "encoder": encoder_of(lm, template="raw")}, "other weights, adapter, template"),
        ({"settings": FEW, "extra": {"training_seed": 1}}, "training_seed None, now 1"),
    ):
        with pytest.raises(JpoError, match=message):
            sample(lm, ROWS[:2], output=out, **change)
    with pytest.raises(JpoError, match="another instruction"):
        ids = [row["id"] for row in (json.loads(line) for line in before.splitlines())]
        sample(lm, [{"id": ids[0], "instruction": "changed"}], FEW, output=out)
    assert out.read_bytes() == before
    out.write_bytes(b'{"id": 1}\n' + before)
    with pytest.raises(DataError, match="line 1: not a line of jpo generate"):
        sample(lm, ROWS[:2], FEW, output=out)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    flags = ["generate", "--model", "tiny", "--input", str(source), "--output", str(out), "--max-new-tokens", "3"]
    assert main([*flags, "--overwrite", "--dry-run"]) == 0 and "2 of them to draw" in capsys.readouterr().out
    assert main([*flags, "--overwrite"]) == 0 and len(out.read_bytes().splitlines()) == 2


def test_the_key_cache_is_a_setting(lm, tmp_path, capsys):
    source, flags = tmp_path / "in.jsonl", ["--max-new-tokens", "4"]
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    flags = ["generate", "--model", "tiny", "--compute", "float32", "--input", str(source), *flags]
    for kept, other in (("float32", "bfloat16"), ("bfloat16", "float32")):
        out = tmp_path / f"{kept}.jsonl"
        assert main([*flags, "--output", str(out), "--cache-dtype", kept]) == 0
        want = sample(lm, ROWS[:2], Sampling(max_new_tokens=4, cache_dtype=kept))
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["output"] for row in rows] == [row["output"] for row in want]
        assert [row.get("cache_dtype", "float32") for row in rows] == [kept, kept]
        with pytest.raises(JpoError, match=f"sampled with cache_dtype '{kept}', now '{other}'"):
            sample(lm, ROWS[:2], Sampling(max_new_tokens=4, cache_dtype=other), output=out)
    capsys.readouterr()
    assert main([*flags, "--cache-dtype", "int4"]) == 1
    assert "cache_dtype: expected one of float32, bfloat16" in capsys.readouterr().err


def test_overwriting_keeps_the_old_file_until_the_new_one_is_whole(lm, tmp_path):
    out, part = tmp_path / "o.jsonl", tmp_path / "o.jsonl.part"
    out.write_bytes(b"what stood here\n")
    whole = sample(lm, ROWS, FEW)
    drawing = iter_samples(lm, ROWS, FEW, output=out, overwrite=True)
    next(drawing), drawing.close()
    assert out.read_bytes() == b"what stood here\n" and part.exists()
    drawn = part.read_bytes()
    first = next(iter_samples(lm, ROWS, FEW, output=out, overwrite=True))  # goes on: nothing is drawn twice
    assert first == whole[0] and part.read_bytes().startswith(drawn)
    assert list(iter_samples(lm, ROWS, FEW, output=out, overwrite=True)) == whole
    assert [json.loads(line) for line in out.read_text().splitlines()] == whole and not part.exists()
    part.write_bytes(b"of another run\n")
    assert list(iter_samples(lm, ROWS, FEW, output=out, overwrite=True)) == whole and not part.exists()


def test_an_adapter_changes_the_fingerprint():
    lm = jpo.load("tiny")
    base = fingerprint(lm, encoder_of(lm))
    lm.add_lora(r=2)
    fresh = fingerprint(lm, encoder_of(lm))
    lm.trainable.params[-1] += 1
    assert len({base, fresh, fingerprint(lm, encoder_of(lm))}) == 3
    with lm.disable_adapter():
        assert fingerprint(lm, encoder_of(lm)) == base


def test_bad_settings():
    for wrong in ({"temperatures": ()}, {"seeds": (1, 1)}, {"temperatures": (-1.0,)}, {"n": 0}):
        with pytest.raises(JpoError, match=next(iter(wrong))):
            Sampling(**wrong)
