"""The command line: groups are found, errors are one line with a status."""

import json
import subprocess
import sys

import pytest

from jpo.cli.main import build_app, main
from jpo.errors import DataError


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "doctor" in text and "pairs" in text


def test_doctor_as_json(capsys):
    assert main(["doctor", "--json", "--no-measure"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] >= 1


def test_bad_input_is_one_line(tmp_path, capsys):
    missing = str(tmp_path / "none.jsonl")
    assert main(["pairs", "--weak", "--input", missing, "--output", str(tmp_path / "o.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("jpo: ") and missing in error and "Traceback" not in error


@pytest.mark.parametrize("arguments", [["no-such-command"], ["doctor", "--no-such-option"]])
def test_usage_is_status_2(arguments, capsys):
    assert main(arguments) == 2
    assert "No such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status"), [(DataError("f.jsonl:3: bad"), 1), (KeyboardInterrupt(), 130), (BrokenPipeError(), 0)]
)
def test_statuses(monkeypatch, raised, status):
    app = build_app()

    def fail(**_):
        raise raised

    monkeypatch.setattr("jpo.cli.main.build_app", lambda: fail)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert app is not None and main([]) == status


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fail(**_):
        raise RuntimeError("ours")

    monkeypatch.setattr("jpo.cli.main.build_app", lambda: fail)
    with pytest.raises(RuntimeError, match="ours"):
        main([])


def test_python_m_jpo_gives_the_exit_status():
    result = subprocess.run([sys.executable, "-m", "jpo", "inspect", "no such file"], capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("jpo: ")
