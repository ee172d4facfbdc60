"""The extras of pyproject.toml: each brings what it says, imported for real, and `all` forgets none."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jpo import doctor

ROOT = Path(__file__).parents[1]
try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
WORKING = {"docs", "test", "parity", "dev"}  # for who works on jpo, not for who uses it
APART = {"smollm2", "all"}  # weights, which `all` leaves out by what it says
RUN_TIME = sorted(set(EXTRAS) - WORKING - APART)

# extra -> jpo's modules that need it
USERS = {
    "judge": ["jpo.feedback.openai_judge", "jpo.feedback.transport"],
    "web": ["jpo.web.annotate"],
    "hub": ["jpo.hub.download", "jpo.hub.push", "jpo.hub.data"],
    "lm_eval": ["jpo.integrations.lm_eval"],
    "torch": ["jpo.torch", "jpo.torch.functions", "jpo.torch.trl"],
    "mpi": ["jpo.parallel.ranks"],
}


def test_all_names_every_extra_of_use_at_run_time():
    (line,) = EXTRAS["all"]
    assert sorted(re.fullmatch(r"jpo\[(.*)\]", line)[1].split(",")) == RUN_TIME


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"all"}))
def test_what_an_extra_names_can_be_required(extra):
    from packaging.requirements import Requirement

    for line in EXTRAS[extra]:
        inner = Requirement(line)
        assert inner.name != "jpo" or inner.extras <= set(EXTRAS)


def test_the_doctor_knows_every_extra_of_use_at_run_time():
    assert sorted(doctor.EXTRAS) == sorted([*RUN_TIME, "smollm2"])


@pytest.mark.parametrize("extra", RUN_TIME)
def test_an_extra_is_imported_for_real(extra):
    """Its packages and jpo's modules over them, in a process of its own: they are large, and some start threads."""
    modules = doctor.EXTRAS[extra]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"extra {extra}: {', '.join(missing)} is not installed")
    code = f"import importlib\nfor name in {[*modules, *USERS.get(extra, [])]!r}: importlib.import_module(name)\n"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
