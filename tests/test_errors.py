"""Messages: what a file smuggles into them is spelled out before a terminal sees it."""

import pytest

from jpo.errors import DataError, FormatError, JpoError


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
