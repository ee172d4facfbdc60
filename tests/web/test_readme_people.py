"""README's script from an empty folder to a trained adapter with people's joint feedback, run as printed: jpo writes
the page's link, a simulated person in a real browser answers by keyboard, and the script goes on. The embedded model
stands in for SmolLM2, whose training takes half a minute, unless JPO_AS_PRINTED=1. Skipped by name where there is no
browser."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import README
from web.test_browser import MISSING, Person

SCRIPT = re.search(r"^```shell\n(.*?jpo annotate.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
ROOT = Path(__file__).parents[2]


def as_installed(folder):
    """`.venv/bin/jpo`, as the README's reader has it, running this checkout."""
    command = folder / ".venv" / "bin" / "jpo"
    command.parent.mkdir(parents=True)
    start = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    command.write_text(f"{start}from jpo.cli.main import main\nsys.exit(main())\n")
    command.chmod(0o755)


@pytest.mark.skipif(
    bool(MISSING) and os.environ.get("JPO_REQUIRE_BROWSER") != "1", reason=f"needs {', '.join(MISSING)}"
)
def test_from_an_empty_folder_to_an_adapter_of_peoples_feedback(tmp_path):
    as_installed(tmp_path)
    script = SCRIPT if os.environ.get("JPO_AS_PRINTED") == "1" else SCRIPT.replace("smollm2-135m", "tiny")
    script = script.replace("jpo annotate", "jpo annotate --port 0")  # where something listens at the usual port
    run = subprocess.Popen(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in run.stdout:
        lines.append(line)
        if found := re.match(r"annotate: (\S+)", line):
            answer_all(found[1])
    assert run.wait(60) == 0, "".join(lines)
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(said) == 12 and all("instruction_0" in row and row["annotator"] == "anna" for row in said)
    adapter = next(tmp_path.glob("*/adapter_model.safetensors")).parent
    assert len((adapter / "metrics.jsonl").read_text().splitlines()) >= 3
    output = "".join(lines)
    assert re.search(r'"output": "[^"]{10,}', output) and "adapter" in output


def answer_all(url):
    """A person who prefers the longer response, with the arrow keys."""
    from selenium.webdriver.common.keys import Keys

    anna = Person(url, "anna")
    try:
        while anna.driver.find_elements("css selector", "#answer"):
            texts = anna.driver.execute_script(
                "return [...document.querySelectorAll('.side')].map(side => side.innerText)"
            )
            anna.choose(Keys.ARROW_LEFT if len(texts[0]) > len(texts[1]) else Keys.ARROW_RIGHT)
        assert "That is all for now." in anna.find("#work").text
    finally:
        anna.driver.quit()
