"""What CI installs by hash (.ci/requirements.lock) holds every package that the extras `test` and `parity` ask for."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / ".ci" / "requirements.lock").read_text(encoding="ascii").splitlines()
APART = {"torch"}  # installed by itself first: its file is another one on every kind of machine


def asked(extra):
    """The requirements of an extra, those of the extras within it included."""
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                yield from asked(inner)
        else:
            yield requirement


WANTED = {str(item): item for item in [*map(Requirement, PROJECT["dependencies"]), *asked("test"), *asked("parity")]}


def test_each_line_is_one_version_with_its_hash_and_names_no_host():
    assert re.fullmatch(r"# Python 3\.\d+ [a-z0-9_-]+", LOCK[0])
    for line in LOCK[1:]:
        assert re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.!]+ --hash=sha256:[0-9a-f]{64}", line), line
    names = [line.split("==")[0] for line in LOCK[1:]]
    assert names == sorted(set(names))


@pytest.mark.parametrize("text", sorted(WANTED))
def test_the_lock_holds_what_an_extra_asks_for(text):
    wanted = WANTED[text]
    if canonicalize_name(wanted.name) in APART:
        pytest.skip("torch stands beside the lock")
    locked = dict(line.split(" ")[0].split("==") for line in LOCK[1:])
    name = canonicalize_name(wanted.name)
    assert name in locked, f"{name} is not in .ci/requirements.lock: CONTRIBUTING.md has the command that writes it"
    assert wanted.specifier.contains(locked[name], prereleases=True), f"the lock has {name} {locked[name]}"
