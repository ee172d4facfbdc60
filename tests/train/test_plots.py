import pytest

import jpo
from jpo import plots

pytest.importorskip("matplotlib").use("Agg")


def test_history_is_drawn_and_read_back(tmp_path):
    config = jpo.PreferenceConfig(steps=3, batch_size=8, output=str(tmp_path / "run"))
    run = jpo.PreferenceTrainer(jpo.load("tiny"), "example", config, "example").train()
    figure = plots.history(run, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 5000
    assert [axis.get_title() for axis in figure.axes] == ["loss", "reward margin", "rewards", "accuracy"]
    assert list(figure.axes[0].lines[0].get_ydata()) == run["loss"]
    again = plots.read_history(tmp_path / "run")
    assert again["loss"] == run["loss"] and again["step"] == [1, 2, 3]


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="loss"):
        plots.history({"step": [1]})
