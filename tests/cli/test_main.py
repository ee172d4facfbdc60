"""The command line: groups are found, errors are one line with a status."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import jpo
from jpo.cli.main import build_app, main
from jpo.errors import DataError


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "doctor" in text and "pairs" in text


def test_help_breaks_its_prose_at_the_terminals_width(monkeypatch, capsys):
    """Not where its docstring's lines end."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["serve", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    prose = lines[next(place for place, line in enumerate(lines) if line.startswith("Any OpenAI client")) :]
    prose = prose[: prose.index("")]
    assert len(prose) > 3 and all(len(line) > 60 for line in prose[:-1]), prose


def test_doctor_as_json(capsys):
    assert main(["doctor", "--json", "--no-measure"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] >= 1


def test_bad_input_is_one_line(tmp_path, capsys):
    missing = str(tmp_path / "none.jsonl")
    assert main(["pairs", "--weak", "--input", missing, "--output", str(tmp_path / "o.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("jpo: ") and missing in error and "Traceback" not in error


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_run_whose_streams_are_closed_ends_as_any_other(tmp_path, closed):
    """As services start it: Python has no sys.stderr then."""
    run = [sys.executable, "-m", "jpo", "train", "--model", "tiny", "--data", "example", "--steps", "1"]
    arguments = shlex.join([*run, "--batch-size", "2", "--output", str(tmp_path / "out")])
    result = subprocess.run(["sh", "-c", f"{arguments} {closed}"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 1


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


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jpo {jpo.__version__}\n"


def test_each_command_has_one_short_sentence(capsys, monkeypatch):
    """The list of commands at 100 columns: no command takes more than two lines, none breaks off."""
    monkeypatch.setenv("COLUMNS", "100")
    for command in build_app().registered_commands:
        first = (command.callback.__doc__ or "").split("\n\n")[0]
        assert len(first) <= 120 and "\n" not in first.strip() and first.strip().endswith("."), command.name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse_in_their_shells(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert "_JPO_COMPLETE" in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert subprocess.run([shell, "-n", str(script)], capture_output=True, text=True).stderr == ""


def test_bash_completes_commands_and_options(tmp_path, capsys):
    """Through bash itself: the script is sourced, and its function answers for words on the line."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "jpo").write_text(f'#!/bin/sh\nexec {sys.executable} -m jpo "$@"\n')
    (tmp_path / "jpo").chmod(0o755)
    asking = capsys.readouterr().out + "\n".join(
        f'COMP_WORDS=({words}); COMP_CWORD={count}; _jpo_completion jpo; echo "${{COMPREPLY[*]}}"'
        for words, count in (("jpo tr", 1), ("jpo train --sco", 2), ("jpo completion z", 2))
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert result.stdout.split("\n")[:3] == ["train", "--scope", "zsh"], result.stderr


def test_train_help_is_grouped_with_ten_options_first(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    heads = re.findall(r"─ ([A-Z]\w+) ─", text)
    assert heads == ["Options", "Data", "Optimization", "Adapter", "Objective", "Output"]
    first = re.findall(r"^│ (--[\w-]+)", text[: text.index("─ Data ─")], re.MULTILINE)
    wanted = ["--model", "--data", "--eval-data", "--batch-size", "--epochs", "--learning-rate", "--output", "--scope"]
    assert first == [*wanted, "--loss", "--beta", "--help"]


def test_no_raw_memory_error(monkeypatch, capsys):
    def fail(**_):
        raise MemoryError("a pass over 9 rows")

    monkeypatch.setattr("jpo.cli.main.build_app", lambda: fail)
    assert main([]) == 1
    error = capsys.readouterr().err
    assert "not enough memory (a pass over 9 rows)" in error and "--token-budget" in error and "Traceback" not in error
