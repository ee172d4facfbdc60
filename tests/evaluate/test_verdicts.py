import json

import numpy as np
import pytest

from jpo.cli.main import main
from jpo.errors import DataError
from jpo.evaluate import bootstrap_difference, read_verdicts, wilson
from jpo.feedback.interplay import interplay

SEP = "<SEP><SEP><SEP><SEP>"


def cache(tmp_path, content):
    path = tmp_path / "cache.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def items(verdicts):
    return {f"i{n}{SEP}gold{SEP}output {n}": verdict for n, verdict in enumerate(verdicts)}


def test_win_rates_are_counted_and_printed(tmp_path, capsys):
    path = cache(
        tmp_path, {"jpo": items(["model", "model", "gold", "equal"]), "dpo": items(["gold", "equal", "gold", "equal"])}
    )
    rates = read_verdicts(path)
    assert rates["jpo"].rate == 2.5 / 4 and rates["dpo"].rate == 1 / 4
    assert main(["evaluate", "--verdicts", path, "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert "jpo: wins 2, losses 1, ties 1, win-rate 62.5 %" in shown
    assert "dpo: wins 0, losses 2, ties 2, win-rate 25.0 %" in shown
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["win_rates"]["jpo"]["win_rate"] == 0.625
    assert written["comparisons"][0]["difference"] == 0.375
    assert written["win_rates"]["jpo"]["longer_than_gold"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "mapping of models"),
        ({"m": {}}, "'m'"),
        ({"m": {"a" + SEP + "b": "model"}}, "2 parts"),
        ({"m": items(["Model"])}, "'Model'"),
        ({"m": items([1])}, "verdict 1"),
        ('{"m": {"a": "model", "a": "gold"}}', "twice"),
    ],
)
def test_malformed_caches(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_verdicts(cache(tmp_path, content))


def test_intervals():
    scipy_stats = pytest.importorskip("scipy.stats")
    for k, n in ((0, 5), (3, 7), (50, 100)):
        want = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k, n) == pytest.approx((want.low, want.high))
    rng = np.random.default_rng(0)
    a, b = rng.random(200) + 0.3, rng.random(200)
    got = bootstrap_difference(a, b, draws=2000)
    half = 1.96 * (a - b).std() / 200**0.5
    assert got["low"] == pytest.approx((a - b).mean() - half, abs=0.02) and got["p"] < 0.05


def test_interplay_reads_labels_not_positions(tmp_path, capsys):
    rows = [("chosen", "chosen", 0), ("chosen", "chosen", 2), ("rejected", "rejected", 1), ("chosen", "rejected", 0),
            ("rejected", "chosen", 1), ("rejected", "chosen", 0), ("chosen", "rejected", 2), ("chosen", None, 0), ("chosen", "rejected", None)]  # fmt: skip
    records = [
        {"label_0": a, "label_1": b, "feedback": f, "annotator": "ab"[n % 2]} for n, (a, b, f) in enumerate(rows)
    ]
    result = interplay(records)
    assert result["chosen_chosen_decisive"]["share"] == 0.5 and result["chosen_chosen_decisive"]["n"] == 2
    assert result["rejected_rejected_decisive"]["share"] == 1
    assert result["pooled_decisive"]["n"] == 3
    shares = [
        result[key]["share"] for key in ("chosen_over_rejected", "rejected_over_chosen", "chosen_rejected_indecisive")
    ]
    assert shares == [0.5, 0.25, 0.25]
    assert result["skipped"] == 2 and set(result["annotators"]) == {"a", "b"}
    path = tmp_path / "joint.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["interplay", "--input", str(path), "--json", str(tmp_path / "i.json")]) == 0
    assert json.loads((tmp_path / "i.json").read_text())["chosen_over_rejected"]["share"] == 0.5
    path.write_text('{"label_0": "good", "label_1": null, "feedback": 0}\n')
    assert main(["interplay", "--input", str(path)]) == 1
    assert "label_0" in capsys.readouterr().err
