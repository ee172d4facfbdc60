"""Options out of YAML files: values by type, in words where they are none, and the nearest name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from jpo.declared import converted, nearest, parse_yaml, read_yaml
from jpo.errors import JpoError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2e3),
        ("1.5e3", 1.5e3),
        ("5.0e-5", 5e-5),
        ("1e5", 1e5),
        ("'1e-4'", "1e-4"),
        ("1e-4x", "1e-4x"),
        ("e-4", "e-4"),
        ("0x1e4", 0x1E4),
    ],
)
def test_yaml_reads_numbers_as_numbers(text, value):
    read = parse_yaml(f"key: {text}")["key"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("value", "hint", "made"),
    [
        (2, float, 2.0),
        (2, float | None, 2.0),
        (True, bool, True),
        (None, int | None, None),
        ([1, 2.5], list[float], [1.0, 2.5]),
        (("a",), list[str], ["a"]),
        (None, dict[str, Any], {}),
        ({"a": 1}, str | Mapping[str, int] | None, {"a": 1}),
        ([1, 2], Sequence[int] | int, [1, 2]),
        ("none of them", Literal["a", "b"], "none of them"),
    ],
)
def test_values_become_what_their_type_says(value, hint, made):
    found = converted(value, hint, "here")
    assert found == made and type(found) is type(made)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (True, int, "a whole number"),
        (1, bool, "true or false"),
        (None, list[int], "a list"),
        (["x"], list[float], "a number"),
        ([None], list[str], "text"),
        (3, dict[str, Any], "a mapping"),
        (1.5, int | None, "a whole number or null"),
        ({}, str | int | Sequence[int], "text, a whole number or a list"),
        (3, Literal["a", "b"] | None, "text or null"),
    ],
)
def test_values_of_another_type_are_refused_in_words(value, hint, expected):
    with pytest.raises(JpoError) as caught:
        converted(value, hint, "file: key")
    wrong = value[0] if isinstance(value, list) else value
    assert str(caught.value) == f"file: key: expected {expected}, got {wrong!r}"


def test_the_nearest_name():
    assert nearest("learning_rte", {"learning_rate": 1, "r": 2}) == "; did you mean 'learning_rate'?"
    assert nearest(3, ["learning_rate"]) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "options.yaml: not valid YAML: key 'a' stands twice, at line 1"),
        ("- 1\n", "options.yaml: expected a mapping of options, got list"),
    ],
)
def test_files_that_hold_no_options(tmp_path, text, message):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises(JpoError, match=message):
        read_yaml(path)
    with pytest.raises(JpoError, match="none.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    path.write_text("")
    assert read_yaml(path) == {}
