"""The documentation: it builds without a warning, every Python and bash block runs as printed, every command exists."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jpo.cli.main import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / ".github" / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
BLOCK = re.compile(r"^```(python|bash|shell)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = [page for page in PAGES if re.search(r"^```(python|bash)$", page.read_text("utf-8"), re.MULTILINE)]


def named(page):
    return str(page.relative_to(DOCS))


def commands(code):
    """The jpo commands of a shell block, as lists of arguments."""
    lines = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [line[1:] for line in words if line and line[0] == "jpo"]


@pytest.mark.parametrize("page", RUN, ids=named)
def test_blocks_run_as_printed(page, tmp_path, monkeypatch, capsys):
    """In order, in an empty folder: python blocks of a page share their names, bash blocks go to the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example-sft.jsonl").write_text('{"instruction": "Name a colour.", "response": "Blue."}\n' * 4)
    names = {}
    for number, (language, code) in enumerate(BLOCK.findall(page.read_text("utf-8"))):
        if language == "python":
            script = tmp_path / f"block{number}.py"
            script.write_text(code, encoding="utf-8")
            names = runpy.run_path(str(script), names)
        elif language == "bash":
            for arguments in commands(code):
                assert main(arguments) == 0, (arguments, capsys.readouterr().err)


def test_every_command_and_option_exists():
    from typer.main import get_command

    from jpo.cli.main import build_app

    known = get_command(build_app()).commands
    seen = 0
    for page in PAGES:
        shell = [code for language, code in BLOCK.findall(page.read_text("utf-8")) if language != "python"]
        for code in shell:
            for command, *arguments in commands(code):
                assert command in known, (named(page), command)
                flags = {
                    flag for parameter in known[command].params for flag in parameter.opts + parameter.secondary_opts
                }
                for word in arguments:
                    assert not word.startswith("--") or word in flags, (named(page), command, word)
                seen += 1
    assert seen > 20


def test_it_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    page = (tmp_path / "html/reference/command-line.html").read_text("utf-8")
    assert all(f"jpo {name}" in page for name in ("train", "push", "merge")) and "--learning-rate" in page
    assert "sequence_logps" in (tmp_path / "html/reference/api.html").read_text("utf-8")
