"""Agreement of annotators, by kind and protocol; what goes with disagreement of conditional and joint verdicts."""

import json

import pytest

import jpo
from jpo.cli.main import main
from jpo.errors import DataError
from jpo.evaluate.sampling import encoder_of
from jpo.feedback.agreement import agreement, annotator_kind, format_agreement, majority
from jpo.feedback.interplay import disagreements, likelihood_of

krippendorff = pytest.importorskip("krippendorff")


def conditional(n, feedback, annotator, **more):
    return {
        "instruction": f"i{n}",
        "response_0": "a",
        "response_1": "b",
        "feedback": feedback,
        "annotator": annotator,
    } | more


def joint(n, feedback, annotator, labels=("chosen", "rejected"), lengths=(1, 1), **more):
    record = {"instruction_0": f"i{n}", "response_0": "a" * lengths[0], "instruction_1": f"j{n}"}
    record |= {"response_1": "b" * lengths[1], "label_0": labels[0], "label_1": labels[1]}
    return record | {"feedback": feedback, "annotator": annotator} | more


def test_kinds_of_annotators():
    kinds = [annotator_kind(name) for name in ("human", "human:ann", "Human-3", "humanoid", "openai:x:y", "ann")]
    assert kinds == ["human", "human", "human", "model", "model", "model"]
    assert annotator_kind("ann", humans=["ann"]) == annotator_kind("ann", {"annotator_kind": "human"}) == "human"
    with pytest.raises(DataError, match="annotator_kind"):
        annotator_kind("ann", {"annotator_kind": "robot"})
    with pytest.raises(DataError, match="a human here and a model elsewhere"):
        agreement([conditional(0, 1, "x"), conditional(1, 1, "x", annotator_kind="human")])


def test_percent_and_alpha_by_kind_and_protocol():
    verdicts = {"human:a": [0, 1, 2, 0, 1, 0], "human:b": [0, 1, 1, 0, None, 1], "m1": [0, 0, 2, 0, 1, 0]}
    records = [conditional(n, v, name) for name, given in verdicts.items() for n, v in enumerate(given)]
    records += [
        joint(n, v, name) for name, given in (("m1", [0, 1, 1]), ("m2", [0, 1, 0])) for n, v in enumerate(given)
    ]
    found = agreement(records)
    assert found["annotators"]["m1"] == {"kind": "model", "conditional": 6, "joint": 3}
    both = found["conditional"]["human_human"]
    assert both["percent"] == 60 and both["n"] == 5 and both["percent_low"] < 60 < both["percent_high"]
    want = krippendorff.alpha([[0, 1, 2, 0, 0], [0, 1, 1, 0, 1]], level_of_measurement="nominal")
    assert both["alpha"] == pytest.approx(want) and both["alpha_low"] <= want <= both["alpha_high"]
    mixed = found["conditional"]["human_model"]
    assert mixed["n"] == 11 and mixed["percent"] == pytest.approx(100 * (5 + 2) / 11)
    assert "model_model" not in found["conditional"] and "human_human" not in found["joint"]
    assert found["joint"]["model_model"]["n"] == 3 and len(found["conditional"]["pairs"]) == 3


def test_exchanged_sides_are_the_same_content():
    turned = {"instruction": "i0", "response_0": "b", "response_1": "a", "feedback": 1, "annotator": "y"}
    found = agreement([conditional(0, 0, "x"), turned])["conditional"]["model_model"]
    assert found["percent"] == 100 and found["n"] == 1 and found["alpha"] is None


def test_what_goes_with_disagreement():
    rows = [joint(n, 0, "m", lengths=(9, 3)) for n in range(4)]  # the chosen one wins, and is longer
    rows += [joint(n, 0, "m", ("rejected", "chosen"), (8, 2)) for n in range(4, 7)]  # the rejected one wins
    rows += [joint(8, 2, "m"), joint(9, 0, "m", ("chosen", "chosen")), joint(9, None, "m")]
    found = disagreements(rows)
    lengths = found["features"]["response_length"]
    assert (
        found["n"] == 8 and lengths["chosen_over_rejected"]["mean"] == 6 and lengths["chosen_over_rejected"]["n"] == 4
    )
    assert lengths["rejected_over_chosen"]["mean"] == -6 and lengths["chosen_rejected_indecisive"]["n"] == 1
    assert "instruction_score" not in found["features"]  # each instruction stands once
    assert found["instructions"][0]["reversed"] == 1 and len(found["instructions"]) == 6
    again = [joint(0, 1, "m", lengths=(1, 2)), joint(0, 0, "m"), joint(0, 0, "m", lengths=(2, 2))]
    scores = disagreements(again)["features"]["instruction_score"]
    assert scores["rejected_over_chosen"]["mean"] == 1 and scores["chosen_over_rejected"]["mean"] == 0
    lm = jpo.load("tiny")
    likelihood = likelihood_of(lm, encoder_of(lm))
    got = disagreements(rows[:1], likelihood)["features"]["response_logp"]["chosen_over_rejected"]
    chosen, rejected = likelihood([("i0", "a" * 9), ("j0", "bbb")])
    assert got["mean"] == pytest.approx(chosen - rejected, abs=1e-3) and chosen < 0


def test_the_command_takes_several_files(tmp_path, capsys):
    files = {"joint": [joint(n, n % 3, who) for n in range(9) for who in ("ann", "m")]}
    files["conditional"] = [conditional(n, 0 if who == "m" else n % 2, who) for n in range(8) for who in ("ann", "m")]
    flags = ["interplay"]
    for name, rows in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags += ["--input", str(path)]
    out = tmp_path / "out.json"
    assert main([*flags, "--human", "ann", "--json", str(out), "--model", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "agreement, conditional, human-model: 50.0 %" in shown and "agreement, joint, human-model: 100.0 %" in shown
    assert "\n  ann, chosen_over_rejected: " in shown and "\n  m, chosen_over_rejected: " in shown
    assert "response length, chosen - rejected" in shown and "response logp" in shown
    result = json.loads(out.read_text())
    assert result["verdicts"] == 18 and result["skipped"] == 0 and set(result["annotators"]) == {"ann", "m"}
    assert result["agreement"]["joint"]["human_model"]["alpha"] == 1
    assert main([*flags, "--human", "nobody"]) == 1 and "no record has this annotator" in capsys.readouterr().err


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    from jpo import plots
    from jpo.feedback.interplay import interplay

    rows = [
        joint(n, n % 3, who, labels)
        for n in range(6)
        for who in "ab"
        for labels in (("chosen",) * 2, ("chosen", "rejected"))
    ]
    figure = plots.interplay(interplay(rows), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 5000
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert len(axis.patches) == 8  # four shares are known, of each annotator
    one = plots.interplay(interplay([row for row in rows if row["annotator"] == "a"])).axes[0]
    assert one.get_legend() is None and len({bar.get_facecolor() for bar in one.patches}) == 2
    with pytest.raises(DataError, match="nothing to draw"):
        plots.interplay(interplay([]))


@pytest.mark.parametrize(
    ("votes", "want"),
    [([], None), ([0], 0), ([0, 0, 1], 0), ([1, 1, 2, 0], 1), ([0, 1], 2), ([0, 1, 2], 2), ([2, 2, 0], 2), ([0, 0, 1, 1], 2)],
)  # fmt: skip
def test_the_majority_and_what_no_majority_means(votes, want):
    assert majority(votes) == want


def test_agreement_with_the_majority():
    votes = {"human a": [0, 0, 1, 2], "human b": [0, 1, 1, 1], "human c": [0, 1, 0, 0], "gpt": [0, 1, 1, 0]}
    records = [
        {"instruction": f"q{n}", "response_0": "x", "response_1": "y", "annotator": name, "feedback": values[n]}
        for name, values in votes.items()
        for n in range(4)
    ]
    found = agreement(records)["conditional"]["majority"]
    # all four: 0, 1, 1, and 0 by two votes against one and one; humans alone: 0, 1, 1, tied
    assert (found["all"]["contents"], found["all"]["tied"]) == (4, 0)
    assert (
        found["all"]["annotators"]["gpt"]["percent"] == 100 and found["all"]["annotators"]["human a"]["percent"] == 50
    )
    assert found["all"]["annotators"]["gpt"]["others_percent"] == 75  # without gpt the last one is tied
    assert (found["humans"]["contents"], found["humans"]["tied"]) == (4, 1)
    assert found["humans"]["annotators"]["gpt"]["percent"] == 75
    shown = format_agreement(agreement(records))
    assert "agreement with the majority, conditional: gpt 100.0 %" in shown and "tied 1 of 4" in shown
    assert (
        agreement([row for row in records if row["annotator"] in ("gpt", "human a")])["conditional"]["majority"] == {}
    )
