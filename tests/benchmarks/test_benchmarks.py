"""The benchmark command's own arithmetic, and one small case through real processes."""

import dataclasses

import numpy as np
import pytest

from benchmarks import contestants, figures, limits, runner, table
from benchmarks.cases import CASES, Case, Goal, at_most, share, times
from benchmarks.contestants.kernels import jpo_logps
from benchmarks.contestants.yardsticks import SGEMM
from jpo.data.forest import build_forest

SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
}  # fmt: skip


def test_preference_arithmetic():
    """2 flops a weight, three passes over every row of the forest, the head at each scored row once."""
    forest = build_forest([((1, 2, 3), (4, 5)), ((1, 2, 3), (6, 7, 8))], "response")
    blocks, head = 106_168_320, 49152 * 576
    assert limits.linear_weights(SMOLLM2) == blocks
    assert forest.rows == 8  # the prompt stands once; its last row scores both first tokens
    assert limits.preference_flops(SMOLLM2, forest, False) == 6 * (8 * blocks + 4 * head)
    assert limits.preference_flops(SMOLLM2, forest, True) == 4 * (8 * blocks + 4 * head)


def turns(*seconds, wave=0):
    return [{"turn": place + 1, "wave": wave, "seconds": value, "peak_gb": 1.0} for place, value in enumerate(seconds)]


def outcome(label, listed, **more):
    return {"label": label, "turns": listed, "peak_gb": 2.0, "note": "", **more}


def test_ratios_pair_neighbours():
    """The machine slows down threefold in the second wave: the peer there is judged by ours of that wave."""
    work = {"units": [0, 10, 10]}
    ours = outcome("jpo, float32", turns(1, 1) + turns(3, 3, wave=1))
    late = outcome("peer", turns(6, 6, wave=1))
    assert figures.paired_ratio(work, ours, late) == pytest.approx(2)
    assert figures.paired_ratio(work, ours, outcome("other", [])) is None


def test_share_follows_the_yardstick_of_its_wave():
    """The machine runs at a third in the second wave, and so does the limit."""
    work = {"units": [0, 10], "flops": [0, 5e8]}
    yardstick = outcome("sgemm", [{"rates": [1e9], "wave": 0}, {"rates": [1e9 / 3], "wave": 1}])
    row = figures.rows(CASES[0], work, [yardstick, outcome("jpo, float32", turns(1) + turns(3, wave=1))])[0]
    assert row["share"] == pytest.approx(0.5) and row["per_yardstick"] == pytest.approx(10)


@pytest.mark.parametrize(
    "goal, value, verdict",
    [
        (share(80), 0.5, "not met"),
        (share(40), 0.5, "met"),
        (times(2, "torch*"), 1.5, "not met"),  # the faster of the two counts
        (times(1.5, "torch*"), 1.5, "met"),
        (times(2, "torch, b"), 3.0, "met"),
        (times(2, "absent"), None, "not measured"),
        (at_most("GB", "peak_gb", 2.0), 2.0, "met"),
        (at_most("GB", "peak_gb", 1.9), 2.0, "not met"),
    ],
)
def test_goals(goal, value, verdict):
    case = Case("c", "", "", dict, (goal,))
    work = {"units": [0, 1], "flops": [0, 1e9]}
    outcomes = [
        outcome("sgemm", [{"rates": [1e9], "wave": 0}]),
        outcome("jpo, float32", turns(2)),
        outcome("torch, a", turns(3)),
        outcome("torch, b", turns(6)),
    ]
    judged = figures.judge(case, work, figures.rows(case, work, outcomes), outcomes)[0]
    assert judged["verdict"] == verdict and judged["value"] == (None if value is None else pytest.approx(value))


def test_sharing_compares_time_with_rows():
    """Half the rows in 0.6 of the time: 1.2."""
    goal = Goal("", "sharing", 1.1, to="apart", at_most=True)
    work = {"units": [0, 10]}
    outcomes = [
        outcome("sgemm", []),
        outcome("jpo, float32", [turns(6)[0] | {"rows": 50}]),
        outcome("apart", [turns(10)[0] | {"rows": 100}]),
    ]
    case = Case("c", "", "", dict, (goal,))
    judged = figures.judge(case, work, figures.rows(case, work, outcomes), outcomes)[0]
    assert judged["value"] == pytest.approx(1.2) and judged["verdict"] == "not met"


def test_waves_fit_the_memory():
    def entry(size):
        return contestants.Entry(contestants.Contestant(str(size), dict, (), (), (), size), contestants.Variant(""))

    groups = list(runner.waves([entry(size) for size in (16, 1, 2, 6)], 8))
    assert [[one.contestant.gigabytes for one in group] for group in groups] == [[1, 2], [6], [16]]
    assert list(runner.waves([], 8)) == [[]]


def test_slow_peers_get_fewer_turns():
    settings = runner.Settings(rounds=5, seconds=30)
    assert [runner.turns_allowed(settings, seconds) for seconds in (0.1, 10, 100)] == [5, 3, 1]


def test_every_goal_names_an_entry():
    """A misspelt label would read "not measured" for ever."""
    contestants.load_all()
    for case in CASES:
        labels = [entry.label for entry in contestants.entries(case.name)]
        assert labels, case.name
        for goal in case.goals:
            assert goal.of in labels, (case.name, goal.of)
            assert not goal.to or any(goal.against(label) for label in labels), (case.name, goal.to)


def test_real_processes(tmp_path):
    """jpo's kernel beside the yardstick; a contestant that fails is reported and stops nobody."""
    one = contestants.Contestant("jpo", jpo_logps, (), ("numpy",), (), 0.1)
    entries = [
        contestants.Entry(one, contestants.Variant(name, options))
        for name, options in (("float32", {}), ("bad", {"x": 1}))
    ]
    absent = contestants.Contestant("peer", jpo_logps, (), ("no-such-distribution",), (), 0.1)
    entries.append(contestants.Entry(absent, contestants.Variant("")))
    work = {"tokens": 64, "vocab": 512, "gradient": False, "units": [1] * 3, "flops": [1e6] * 3}
    settings = runner.Settings(2, 1, False, tmp_path, lambda text: None)
    outcomes = [dataclasses.asdict(one) for one in runner.run_case("small", work, entries, SGEMM, settings)]
    assert [one["label"] for one in outcomes] == ["NumPy sgemm", "jpo, float32", "jpo, bad", "peer"]
    assert [len(one["turns"]) for one in outcomes] == [2, 2, 0, 0]
    assert "failed: TypeError" in outcomes[2]["note"] and outcomes[3]["note"] == "not installed: no-such-distribution"
    assert np.isfinite(figures.yardstick_rate(outcomes[0])) and 0.01 < outcomes[1]["peak_gb"] < 4
    case = Case("small", "title", "GB/s", dict, (share(1),))
    rows = figures.rows(case, work, outcomes)
    assert rows[0]["figure"] > 0 and rows[0]["share"] > 0
    result = {"name": "small", "title": "title", "unit": "GB/s", "yardstick": "y", "yardstick_text": "", "rows": rows}
    text = "\n".join(table.case_lines(result))
    assert "- jpo, bad: failed: TypeError" in text and "- peer: not installed" in text


def test_growth_is_simulated():
    """Traffic of a rank hardly grows with the nodes, its messages do; faster nodes lose more to them."""
    from benchmarks import growth

    few, many = (growth.simulate(nodes, growth.SPEED, steps=1) for nodes in (2, 64))
    assert 0.8 < many.efficiency < 1 and few.step.exchange < many.step.exchange
    assert growth.simulate(64, 1e4 * growth.SPEED, steps=1).efficiency < many.efficiency
    assert few.days / many.days == pytest.approx(32, rel=0.3)
