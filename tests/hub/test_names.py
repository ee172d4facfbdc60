"""What is a name of the hub, and what is a path."""

import pytest

from jpo.errors import JpoError
from jpo.hub.names import HubName, hub_name, repository


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("meta/llama-3.2-1B", ("meta/llama-3.2-1B", None, None)),
        ("a/b@v1.0", ("a/b", "v1.0", None)),
        ("a/b@refs/pr/3", ("a/b", "refs/pr/3", None)),
        ("a/b:sub/x.Q8_0.gguf", ("a/b", None, "sub/x.Q8_0.gguf")),
        ("a/b@main:Q8_0", ("a/b", "main", "Q8_0")),
        ("a/b:config/train", ("a/b", None, "config/train")),
    ],
)
def test_names_of_the_hub(text, wanted):
    found = hub_name(text)
    assert found == HubName(*wanted) and str(found) == text


@pytest.mark.parametrize(
    "text",
    ["tiny", "/abs/x", "./a/b", "../a/b", "a/b/c", "a/", "/a", "a/b.gguf", "data/pairs.jsonl", "data/pairs.jsonl.gz"]
    + ["a/..", "a/b--c", "a b/c", "a/b@", "a/b:", "-a/b", "a/b\n", "https://x/y", "a/b:c:d", "~/x", ""],
)
def test_paths_and_nonsense_are_no_names_of_the_hub(text):
    assert hub_name(text) is None


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name("user/name") is not None
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert hub_name("user/name") is None
    assert hub_name("user/name@v1") is not None  # another name: no such path is here


@pytest.mark.parametrize("text", ["name", "a/b/c", "a/b@v1", "a/b:x", "", "a/b--c", "../b"])
def test_pushing_takes_a_repository_and_nothing_more(text):
    with pytest.raises(JpoError, match="USER/NAME"):
        repository(text)
