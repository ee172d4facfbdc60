"""python -m tests.mutation --area objective|bind|parsers [--every N] [--limit N] [--only FILE[:LINE] ...]
[--seconds S]

Removes each bounds check (bind, parsers) or turns each operator of the losses and their gradients (objective) in turn,
in a copy of the tree, and runs the area's tests: a mutant that passes them all has survived, is printed with its line,
and the exit status is 1. --every N takes each N-th mutant alone, --only those of a file or of a line of it (the end of
its path is enough), --seconds begins no further one after that time. Takes seconds a mutant, so it is no part of the
test suite.
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
AREAS = {  # area -> (sources, tests)
    "objective": (["csrc/objective/losses.c", "csrc/objective/preference.c"], ["tests/objective"]),
    "bind": (
        ["csrc/bind/arguments.c", "csrc/bind/generation.c", "csrc/bind/kernels.c", "csrc/bind/linear.c",
         "csrc/bind/model.c", "csrc/bind/objective.c", "csrc/bind/training.c", "csrc/model/forest.c"],
        ["tests/bind/test_misuse.py", "tests/bind/test_doors.py", "tests/bind/test_doors_of_products.py",
         "tests/bind/test_state.py", "tests/ops/test_sample.py", "tests/model/test_forest.py"],
    ),
    "parsers": (
        ["jpo/formats/gguf.py", "jpo/formats/huggingface.py", "jpo/formats/files.py", "jpo/formats/config.py",
         "jpo/formats/peft.py", "jpo/formats/rope.py"],
        ["tests/hostile/test_hostile_gguf.py", "tests/hostile/test_hostile_huggingface.py", "tests/formats"],
    ),
}  # fmt: skip
ERROR = re.compile(r"PyErr_|jpo_fail|jpo_raise|return false|return NULL|goto fail")


def closing(text, start):
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    return len(text)


def operands(text, start, end):
    """(start, end) of each operand of || between start and end, on the highest level."""
    depth, first, found = 0, start, []
    at = start
    while at < end:
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0 and text.startswith("||", at):
            found.append((first, at))
            first = at + 2
        at += 1
    return [*found, (first, end)]


def checks_of_c(text):
    """Each operand of a condition whose consequence is an error, replaced by false."""
    for found in re.finditer(r"\bif \(", text):
        end = closing(text, found.end() - 1)
        consequence = text[end + 1 : text.find(";", end) + 1]
        if not ERROR.search(consequence):
            continue
        for first, last in operands(text, found.end(), end):
            # what reads its argument cannot be left out: the next line needs it
            if not re.search(
                r"ParseTuple|arg_copy|arg_matrix|_read|_begin|get_int|get_double|Py\w+_New|SimpleNew", text[first:last]
            ):
                yield first, last, " 0 "


def operators_of_c(text):
    """Each binary operator on a line of a loss or its derivative, turned into its opposite."""
    opposite = {" + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " < ": " >= ", " > ": " <= "}
    body = text.index("static")
    for line in re.finditer(r"^.*(?:loss\[|d_w|d_l|by_difference|return|double ).*;", text[body:], re.MULTILINE):
        for found in re.finditer(r" [+*/<>-] ", line.group()):
            start = body + line.start() + found.start()
            if "/*" not in text[text.rfind("\n", 0, start) : start] and not text[:start].endswith((",", "(", "*")):
                yield start, start + 3, opposite[found.group()]


def checks_of_python(text):
    """Each condition, and each operand of its `or`, before a raise, replaced by False."""
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line.encode()))
    data = text.encode()

    def span(node):
        places = (lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset)
        return tuple(len(data[:place].decode()) for place in places)

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and any(isinstance(part, ast.Raise) for part in node.body):
            test = node.test
            parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]
            for part in parts:
                yield (*span(part), "False")


def mutants(area):
    for source in AREAS[area][0]:
        text = (ROOT / source).read_text(encoding="utf-8")
        find = checks_of_python if source.endswith(".py") else operators_of_c if area == "objective" else checks_of_c
        for start, end, new in find(text):
            yield source, text, start, end, new


def wanted(only, source, text, start):
    """Whether a mutant lies where --only says: FILE, or FILE:LINE."""
    line = text.count("\n", 0, start) + 1
    places = [place.partition(":") for place in only]
    return not only or any(source.endswith(file) and at in ("", str(line)) for file, _, at in places)


def killed(tree, area, source, text):
    """How the mutant was noticed: the compiler or a test; None where all tests pass."""
    (tree / source).write_text(text, encoding="utf-8")
    if source.endswith(".c"):
        build = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, capture_output=True
        )
        if build.returncode:
            return "compiler"
    tests = [part for part in AREAS[area][1] if (tree / part).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(command, cwd=tree, capture_output=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "time"
    return None if run.returncode == 0 else "signal" if run.returncode < 0 else "test"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.split("\n\n")[1])
    parser.add_argument("--area", required=True, choices=AREAS)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", nargs="*", default=[], metavar="FILE[:LINE]")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        others = (
            "coverage",
            "sanitized-*",
            "peers",
            "lowest",
            "notebooks",
        )  # what .ci/ puts into build/, and larger things
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "demo", "__pycache__", *others))
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True)
        chosen = [mutant for mutant in mutants(arguments.area) if wanted(arguments.only, *mutant[:3])]
        chosen = chosen[:: arguments.every][: arguments.limit]
        counts, survivors, began = {}, [], time.monotonic()
        for source, text, start, end, new in chosen:
            if time.monotonic() - began > arguments.seconds:
                break
            how = killed(tree, arguments.area, source, text[:start] + new + text[end:])
            (tree / source).write_text(text, encoding="utf-8")
            counts[how or "survived"] = counts.get(how or "survived", 0) + 1
            if how is None:
                line = text.count("\n", 0, start) + 1
                survivors.append(f"{source}:{line}: {' '.join(text[start:end].split())!r} -> {new.strip()!r}")
                print("survived", survivors[-1], flush=True)
        tried = f"{sum(counts.values())} of {len(chosen)} mutants"
        print(f"{arguments.area}: {tried} in {time.monotonic() - began:.0f} s: {counts}", flush=True)
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
