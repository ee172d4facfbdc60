"""Messages: what a file smuggles into them is spelled out before a terminal sees it."""

import pytest

from jpo.errors import DataError, FormatError, JpoError
from jpo.formats import files


@pytest.mark.parametrize("kind", [JpoError, FormatError, DataError])
@pytest.mark.parametrize(
    ("smuggled", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb", "a\\u202eb"),
        ("\ud800", "\\ud800"),
        ("line\r\x08over", "line\\r\\x08over"),
        ("two\nlines\tand tabs, \u00e9 \u4e16", "two\nlines\tand tabs, \u00e9 \u4e16"),
    ],
)
def test_control_characters_are_spelled_out(kind, smuggled, shown):
    error = kind(f"m.gguf: key {smuggled}: no")
    assert str(error) == f"m.gguf: key {shown}: no" and error.args == (str(error),)
    str(error).encode("utf-8")


def test_a_full_disk_under_safetensors_names_the_file(tmp_path):
    from safetensors import SafetensorError

    def write(temporary):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(JpoError, match=r"model.safetensors: cannot be written: .*No space left"):
        files.write_atomic(str(path), write)
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
