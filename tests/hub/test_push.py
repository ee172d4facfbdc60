"""jpo push against a loopback server: what goes, what stays, and what is refused before anything is sent."""

import shutil

import numpy as np
import pytest
from model_files import adapter_config, adapter_tensors, write_adapter_files, write_directory, write_gguf

import jpo
from jpo.cli.main import main
from jpo.errors import JpoError, MissingExtra
from jpo.hub.push import plan


@pytest.fixture
def run(tmp_path):
    """The directory of a training run, with everything that should stay at home."""
    folder = tmp_path / "run"
    write_adapter_files(
        folder, adapter_config(base_model_name_or_path="me/base"), adapter_tensors(("k_proj", "v_proj"))
    )
    for name in (
        "README.md",
        "jpo_config.json",
        "metrics.jsonl",
        "samples.jsonl",
        "verdicts.sqlite",
        "x.bin",
        "evil.py",
    ):
        (folder / name).write_text("{}" if name.endswith(".json") else "text")
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "adapter_config.json", folder / "checkpoint-5")
    shutil.copy(folder / "adapter_model.safetensors", folder / "checkpoint-5")
    (folder / "checkpoint-5" / "optimizer.safetensors").write_bytes(b"state")
    return folder


SENT = ["README.md", "adapter_config.json", "adapter_model.safetensors", "jpo_config.json"]


def push(*arguments):
    return main(["push", *map(str, arguments)])


def test_what_goes_and_what_stays(run):
    upload = plan(str(run))
    assert upload.kind == "adapter" and [name for name, _ in upload.files] == SENT and upload.warnings == []
    assert upload.left == ["checkpoint-5/", "evil.py", "metrics.jsonl", "samples.jsonl", "verdicts.sqlite", "x.bin"]
    assert [name for name, _ in plan(str(run), ["metrics.jsonl"]).files] == sorted([*SENT, "metrics.jsonl"])


def test_a_dry_run_needs_no_hub_and_sends_nothing(run, hub, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert push(run, "me/new", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "adapter_model.safetensors" in told and "stays here: checkpoint-5/" in told and "nothing was sent" in told
    assert hub.log == []
    with pytest.raises(MissingExtra, match=r"jpo\[hub\]"):
        from jpo.hub.push import push as send

        send(str(run), "me/new", plan(str(run)))


def test_an_adapter_goes_up_in_one_commit_and_comes_back(run, hub, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    write_directory(tmp_path / "base")
    assert push(run, "me/new", "--private", "--message", "first") == 0
    ((repo, revision, header, sent),) = hub.commits
    assert (repo, revision, header["summary"]) == ("me/new", "main", "first")
    assert (
        sorted(sent) == SENT and sent["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    )
    assert "me/new" in hub.private and "/me/new/commit/" in capsys.readouterr().out
    ours, theirs = jpo.load(tmp_path / "base"), jpo.load(tmp_path / "base")
    ours.load_adapter(run)
    theirs.load_adapter("me/new")
    assert np.array_equal(ours.logits([1, 2]), theirs.logits([1, 2]))


def test_a_merged_model_in_shards_and_a_branch(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    write_directory(tmp_path / "model", shards=2)
    assert push(tmp_path / "model", "me/model", "--revision", "try") == 0
    assert hub.branches == [("me/model", "try")] and hub.commits[0][1] == "try"
    assert len([name for name in hub.commits[0][3] if name.endswith(".safetensors")]) == 2
    (tmp_path / "model" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(JpoError, match="names model-00002-of-00002.safetensors, which is not there"):
        plan(str(tmp_path / "model"))


def test_gguf_files(tmp_path):
    (tmp_path / "g").mkdir()
    write_gguf(tmp_path / "g" / "m.gguf")
    (tmp_path / "g" / "Modelfile").write_text("FROM m.gguf")
    assert [name for name, _ in plan(str(tmp_path / "g")).files] == ["Modelfile", "m.gguf"]


def test_a_checkpoint_and_strange_directories_are_refused(run, tmp_path):
    with pytest.raises(JpoError, match=r"training checkpoint \(optimizer.safetensors\).*push the run's own"):
        plan(str(run / "checkpoint-5"))
    with pytest.raises(JpoError, match="neither an adapter"):
        plan(str(tmp_path))
    with pytest.raises(JpoError, match="no such directory"):
        plan(str(tmp_path / "nothing"))
    with pytest.raises(JpoError, match="never sent"):
        plan(str(run), ["evil.py"])
    with pytest.raises(JpoError, match="has no such file"):
        plan(str(run), ["checkpoint-5"])


@pytest.mark.parametrize("key", ["hf_" + "a" * 34, "sk-" + "proj_" + "b" * 30])
def test_a_key_in_a_file_is_refused(run, key):
    (run / "README.md").write_text(f"# made with {key}\n")
    with pytest.raises(JpoError, match="README.md: holds what looks like a secret key") as caught:
        plan(str(run))
    assert key not in str(caught.value)


def test_a_path_of_this_machine_and_a_missing_card_are_noted(run):
    write_adapter_files(run, adapter_config(base_model_name_or_path="/somewhere/model"), adapter_tensors(("k_proj",)))
    (run / "README.md").unlink()
    upload = plan(str(run))
    assert "/somewhere/model" in upload.warnings[0] and "README.md" in upload.warnings[1]


@pytest.mark.parametrize(
    "token, told", [(None, "no token"), ("hf_wrong", "refuses the token (401)"), ("hf_reader", "may not write")]
)
def test_tokens(run, hub, monkeypatch, capsys, token, told):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert push(run, "me/new") == 1
    line = capsys.readouterr().err.strip()
    assert told in line and "\n" not in line and hub.commits == []
    assert "HF_TOKEN" in line or "settings/tokens" in line


def test_a_public_repository_is_not_written_as_a_private_one(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.files["model", "me/open"] = {}
    assert push(run, "me/open", "--private") == 1
    assert "exists and is public" in capsys.readouterr().err and hub.commits == []
    assert push(run, "me/open") == 0 and len(hub.commits) == 1
