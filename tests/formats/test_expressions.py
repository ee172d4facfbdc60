"""Expressions of foreign adapters: those that name modules are read, those that would hang are refused by name."""

import json
import re
import time

import pytest

import jpo
from jpo.errors import FormatError
from jpo.formats.expressions import why_slow

NAMES = [
    "q_proj", r"model\.layers\.(\d+)\.self_attn\.q_proj", "layers.0.mlp.up_proj", "(q|k|v)_proj", r".*\.(0|1|2|3)\..*_proj",
    r"^model\.layers\.(?!3\.)\d+\..*q_proj", "(?:model|base).layers.[0-9]+.mlp.(gate|up|down)_proj", ".*", "layers.1?[0-9].mlp.*",
]  # fmt: skip
SLOW = [
    "([a-z_.0-9]+)+X", "(a|ab|b)*X", "(.*)*X", "(a?){40}X", "(a?b?c?)*X", ".*.*.*.*.*.*.*.*X", "(a|a)" * 40 + "X", "a?" * 40 + "X",
    "(?:(?:.{1,5}){1,5}){1,5}X", "(?=(.+)+X).*", "a" * 2000, "(" * 500 + "a" + ")" * 500 + "(b+)+",
]  # fmt: skip


def test_expressions_that_name_modules_are_read():
    name = "model.layers.3.self_attn.q_proj"
    for expression in NAMES:
        assert why_slow(expression) is None, expression
        begun = time.monotonic()
        re.match(rf"(.*\.)?({expression})$", name * 4)
        assert time.monotonic() - begun < 5, expression


def test_expressions_that_would_hang_are_refused():
    for expression in SLOW:
        try:
            assert why_slow(expression) is not None, expression
        except re.error:  # the interpreter's own bounds on groups
            continue


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_an_adapter_cannot_hang_what_loads_it(tmp_path, key):
    lm = jpo.load("tiny")
    lm.add_lora(r=2)
    lm.save_adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {key: {"([a-z_.0-9]+)+X": 2}}))
    with pytest.raises(
        FormatError, match=rf"adapter_config.json: key {key}: .* is refused: a repetition holds another"
    ):
        jpo.load("tiny").load_adapter(tmp_path)
    path.write_text(json.dumps(config | {key: {r".*\.self_attn\.(q|k)_proj": 2}}))
    jpo.load("tiny").load_adapter(tmp_path)
