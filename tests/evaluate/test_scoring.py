"""jpo score beside sums of its parts: lm.sequence_logps for pairs and examples, with and without an adapter."""

import json
import math

import numpy as np
import pytest

import jpo
from jpo.cli.main import main
from jpo.data.templates import Template
from jpo.errors import DataError, JpoError
from jpo.evaluate.sampling import encoder_of
from jpo.evaluate.scoring import score, summary

PAIRS = [
    {"i_chosen": "Name a colour.", "r_chosen": "Blue.", "i_reject": "Add 2 and 3.", "r_reject": "Six, I think."},
    {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."},
]
EXAMPLES = [
    {"instruction": "Name a colour.", "response": "Blue."},
    {"instruction": "Say hello.", "response": "Hello there!"},
]


@pytest.fixture
def lm():
    lm = jpo.load("tiny")
    lm.add_lora(r=2, target_modules="all-linear")
    lm.trainable.params[:] += np.random.default_rng(0).normal(size=lm.trainable.params.size).astype(np.float32) * 0.05
    return lm


def texts(records, lm, side=None):
    template = Template()
    keys = {
        None: ("instruction", "response"),
        "chosen": ("i_chosen", "r_chosen"),
        "rejected": ("i_reject", "r_reject"),
    }[side]
    prompts, responses = [], []
    for record in records:
        plain = {**record, **({"i_chosen": record["prompt"], "r_chosen": record["chosen"], "i_reject": record["prompt"],
                               "r_reject": record["rejected"]} if "prompt" in record else {})}  # fmt: skip
        prompts.append(template.prompt_text(plain[keys[0]], lm.tokenizer))
        responses.append(" " + plain[keys[1]])
    return prompts, responses


@pytest.mark.parametrize("scope", ["joint", "response"])
def test_pairs(lm, scope):
    rows = list(score(lm, PAIRS, encoder=encoder_of(lm), scope=scope, beta=0.3))
    for side in ("chosen", "rejected"):
        expected = lm.sequence_logps(*texts(PAIRS, lm, side), scope=scope)
        with lm.disable_adapter():
            reference = lm.sequence_logps(*texts(PAIRS, lm, side), scope=scope)
        np.testing.assert_allclose([row[f"logps/{side}"] for row in rows], expected, rtol=1e-6)
        np.testing.assert_allclose([row[f"ref_logps/{side}"] for row in rows], reference, rtol=1e-6)
        np.testing.assert_allclose([row[f"rewards/{side}"] for row in rows], 0.3 * (expected - reference), atol=1e-5)
    assert [row["record"] for row in rows] == [0, 1]
    figures = summary(rows)
    margins = [row["rewards/margins"] for row in rows]
    assert figures["mean margin"] == pytest.approx(np.mean(margins))
    assert figures["accuracy"] == np.mean(np.array(margins) > 0)


def test_without_an_adapter_the_margin_is_of_log_likelihoods():
    lm = jpo.load("tiny")
    (row, _) = score(lm, PAIRS, encoder=encoder_of(lm))
    assert "ref_logps/chosen" not in row and row["margin"] == row["logps/chosen"] - row["logps/rejected"]


def test_examples(lm):
    rows = list(score(lm, EXAMPLES, encoder=encoder_of(lm), scope="response"))
    expected = lm.sequence_logps(*texts(EXAMPLES, lm), scope="response")
    np.testing.assert_allclose([row["logps"] for row in rows], expected, rtol=1e-6)
    for row in rows:
        assert row["perplexity"] == pytest.approx(math.exp(-row["logps"] / row["tokens"]))
    total = sum(row["logps"] for row in rows) / sum(row["tokens"] for row in rows)
    assert summary(rows)["perplexity"] == pytest.approx(math.exp(-total)) and "ref_perplexity" in summary(rows)


def test_what_cannot_be_scored_is_named(lm):
    with pytest.raises(JpoError, match="scope: expected one of joint, response"):
        list(score(lm, PAIRS, encoder=encoder_of(lm), scope="prompt"))
    with pytest.raises(DataError, match="jpo score reads preference pairs and"):
        list(score(lm, [{"question": "?"}], encoder=encoder_of(lm)))
    with pytest.raises(DataError, match="no record is left"):
        summary([])


def test_the_command_writes_a_table_and_rows(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in PAIRS))
    output = str(tmp_path / "rows.jsonl")
    assert main(["score", str(tmp_path / "pairs.jsonl"), "--model", "tiny", "--output", output]) == 0
    said = capsys.readouterr().out
    assert "mean margin" in said and "perplexity/chosen" in said and "2 of 2 records kept" in said
    assert [json.loads(line)["record"] for line in open(output)] == [0, 1]
    assert main(["score", str(tmp_path / "none.jsonl"), "--model", "tiny"]) == 1


def test_a_row_names_its_record_where_others_were_dropped(lm):
    rows = list(score(lm, [{"instruction": "a", "response": " "}, *EXAMPLES], encoder=encoder_of(lm)))
    assert [row["record"] for row in rows] == [1, 2]


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_beta_that_scales_to_nothing_is_refused(lm, beta, capsys):
    with pytest.raises(JpoError, match="beta: expected a number above 0"):
        list(score(lm, PAIRS, encoder=encoder_of(lm, {}), beta=beta))
    assert main(["score", "none.jsonl", "--model", "none", "--beta", str(beta)]) == 1  # before either is looked for
    assert "beta: expected a number above 0" in capsys.readouterr().err
