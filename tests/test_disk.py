"""Files that stand whole or not at all: what is swept and what is not, the order of sync and rename, names of
faults."""

import errno
import os
import subprocess
import sys

import pytest

from jpo.disk import naming_faults, settle, sweep_temporaries, sync_folder, temporary, write_atomic
from jpo.errors import JpoError


def left_by_a_kill(path, folder):
    """Another process that writes `path` is killed at it."""
    code = f"import os, sys\nfrom jpo.disk import temporary\nwith temporary(sys.argv[1], {folder}): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9


def hidden(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".tmp"))


@pytest.mark.parametrize("folder", [False, True])
def test_the_next_writer_sweeps_what_a_killed_one_left_and_nothing_else(tmp_path, folder):
    left_by_a_kill(tmp_path / "m", folder)
    left_by_a_kill(tmp_path / "m.b", folder)
    assert len(hidden(tmp_path)) == 2
    with temporary(str(tmp_path / "m"), folder) as name, temporary(str(tmp_path / "m"), folder) as second:
        assert os.path.exists(name), "a writer at work lost its temporary to another one"
        assert os.path.exists(second)
    (other,) = hidden(tmp_path)
    assert other.startswith(".m.b.")
    sweep_temporaries(str(tmp_path))
    assert not hidden(tmp_path)


def test_a_killed_merge_leaves_nothing_behind_after_the_next(tmp_path):
    left_by_a_kill(tmp_path / "x.json", folder=False)
    write_atomic(str(tmp_path / "x.json"), lambda path: open(path, "w").write("{}"))
    assert os.listdir(tmp_path) == ["x.json"] and (tmp_path / "x.json").stat().st_mode & 0o444


def test_settle_syncs_before_and_after_the_rename(tmp_path, monkeypatch):
    calls, part, final = [], tmp_path / "part", tmp_path / "final"
    (part / "inner").mkdir(parents=True)
    (part / "inner" / "file").write_text("new")
    final.mkdir()
    monkeypatch.setattr(
        os, "fsync", lambda handle: calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
    )
    for name in ("rename", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, real=real: (calls.append(f"{a} > {b}"), real(a, b)))
    settle(str(part), str(final), old=str(tmp_path / "old"))
    assert sorted(calls[:3]) == ["file", "inner", "part"]
    assert calls[3:] == [f"{final} > {tmp_path / 'old'}", f"{part} > {final}", tmp_path.name]
    assert (final / "inner" / "file").read_text() == "new" and (tmp_path / "old").is_dir()


def test_a_disk_that_fails_is_told_and_one_that_syncs_no_folders_is_not(tmp_path, monkeypatch):
    def fail(code):
        def raised(handle):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", raised)

    fail(errno.EINVAL)
    sync_folder(str(tmp_path))
    fail(errno.EIO)
    with pytest.raises(OSError) as caught:
        sync_folder(str(tmp_path))
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("name, own", [
    ("out", True), ("out/adapter.safetensors", True), (".out.abcd_123.tmp", True), ("out.part", True),
    ("labels.csv", False), ("../out", False),
])  # fmt: skip
def test_faults_of_the_written_file_are_named_with_the_remedy_and_others_pass(tmp_path, name, own):
    (tmp_path / "a").mkdir()
    path, faulty = str(tmp_path / "a" / "out"), str(tmp_path / "a" / name)
    with pytest.raises(JpoError if own else OSError) as caught, naming_faults(path, "mend this"):
        raise OSError(errno.ENOSPC, "No space left on device", faulty)
    if own:
        assert str(caught.value).startswith(f"{path}: cannot be written: No space left on device")
        assert str(caught.value).endswith("; mend this") and (name == "out" or faulty in str(caught.value))


def test_a_full_disk_under_safetensors_names_the_file(tmp_path):
    from safetensors import SafetensorError

    def write(temporary):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(JpoError, match=r"model.safetensors: cannot be written: .*No space left"):
        write_atomic(str(path), write)
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
