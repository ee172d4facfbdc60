"""The policy's tables name tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_finding_names_its_tests():
    text = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8").split("## How it is tested")[1]
    named = re.findall(r"`(test_\w+)(?:\.(test_\w+))?`", text.split("\n## ")[0])
    assert len(named) > 25
    for file, test in named:
        texts = [place.read_text(encoding="utf-8") for place in (ROOT / "tests").rglob(f"{file}.py")]
        assert any(f"def {test}" in text for text in texts), (file, test)
