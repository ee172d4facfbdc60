"""Names of the hub where a path is expected, against a loopback server; every refusal says its remedy in one line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants
from model_files import adapter_tensors, write_adapter_files, write_directory, write_gguf

import jpo
from jpo.cli.main import main
from jpo.data import read_records
from jpo.errors import FormatError, JpoError, MissingExtra
from jpo.formats.peft import read_adapter
from tests.hub.server import COMMIT

EVIL = {
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"raise SystemExit('run')",
    "tokenizer.py": b"raise SystemExit('run')",
    "optimizer.pt": b"pickle",
    "README.md": b"# card",
}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def model(hub, tmp_path):
    """The hub holds me/model, in two shards, beside files that nobody should ask for."""
    write_directory(tmp_path / "source", shards=2)
    hub.files["model", "me/model"] = files_of(tmp_path / "source") | EVIL
    return hub


@pytest.fixture
def adapter(model, tmp_path):
    write_adapter_files(tmp_path / "lora", tensors=adapter_tensors(("k_proj", "v_proj")))
    model.files["model", "me/lora"] = files_of(tmp_path / "lora") | EVIL
    return model


def refusal(function, *arguments):
    """The message of the JpoError: one line."""
    with pytest.raises(JpoError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what works -----------------------------------------------------------------------------------------------------


def test_a_model_by_name_equals_the_same_model_by_path(model, tmp_path):
    lm, local = jpo.load("me/model"), jpo.load(tmp_path / "source")
    assert lm.source == "me/model"
    assert np.array_equal(lm.logits([1, 2, 3]), local.logits([1, 2, 3]))


def test_only_needed_files_are_fetched_and_once(model):
    jpo.load("me/model")
    asked = {path.rsplit("/", 1)[1] for method, path, _ in model.log if "/resolve/" in path}
    assert asked and not asked & set(EVIL)
    assert asked >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    before = len(model.log)
    jpo.load("me/model@v1")
    later = [entry for entry in model.log[before:] if entry[0] == "GET" and "/resolve/" in entry[1]]
    assert later == []  # the same commit: nothing is fetched again


def test_every_file_is_of_the_commit_that_the_revision_named_first(model):
    jpo.load("me/model")
    revisions = [path.split("/resolve/")[1].split("/")[0] for _, path, _ in model.log if "/resolve/" in path]
    assert revisions[0] == "main" and set(revisions[1:]) <= {"main", COMMIT} and COMMIT in revisions


def test_a_local_directory_of_that_name_wins(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "source", tmp_path / "me" / "model")
    assert jpo.load("me/model").source == "me/model" and model.log == []
    (tmp_path / "me" / "model" / "config.json").unlink()
    assert "config.json is missing" in refusal(jpo.load, "me/model")  # a broken directory is not looked up elsewhere
    assert model.log == []


def test_an_adapter_by_name_and_what_it_is_called_when_it_is_saved(adapter, tmp_path):
    lm = jpo.load("me/model@v1")
    lm.load_adapter("me/lora")
    local = jpo.load(tmp_path / "source")
    local.load_adapter(tmp_path / "lora")
    assert np.array_equal(lm.logits([1, 2, 3]), local.logits([1, 2, 3]))
    lm.save_adapter(tmp_path / "again")
    assert read_adapter(tmp_path / "again")[0].base_model_name_or_path == "me/model"
    asked = {path.rsplit("/", 1)[1] for _, path, _ in adapter.log if "/resolve/" in path and "me/lora" in path}
    assert asked == {"adapter_config.json", "adapter_model.safetensors"}


def test_gguf_files_are_named_behind_a_colon(hub, tmp_path):
    write_gguf(tmp_path / "one.gguf")
    data = (tmp_path / "one.gguf").read_bytes()
    hub.files["model", "me/gguf"] = {"x-Q8_0.gguf": data, "x-Q4_0.gguf": data, "README.md": b""}
    local = jpo.load(tmp_path / "one.gguf").logits([1, 2])
    for name in ("me/gguf:x-Q8_0.gguf", "me/gguf:q8_0"):
        assert np.array_equal(jpo.load(name).logits([1, 2]), local)
    assert not hub.gets("x-Q4_0.gguf")
    told = refusal(jpo.load, "me/gguf")
    assert "me/gguf:x-Q4_0.gguf, me/gguf:x-Q8_0.gguf" in told
    assert "0 GGUF files" in refusal(jpo.load, "me/gguf:q2_k")


def test_a_file_of_a_data_set(hub):
    hub.files["dataset", "me/pairs"] = {"train.jsonl": b'{"a": 1}\n{"a": 2}\n', "load.py": b""}
    rows = read_records("me/pairs:train.jsonl")
    assert rows == [{"a": 1}, {"a": 2}] and rows[1].where == "me/pairs:train.jsonl, line 2"
    assert read_records(["me/pairs@v1:train.jsonl", "example"])[0] == {"a": 1}
    assert "it has: load.py, train.jsonl" in refusal(read_records, "me/pairs:test.jsonl")
    assert not hub.gets("load.py")


def test_the_command_line_takes_names(adapter, tmp_path, capsys):
    assert (
        main(["generate", "--model", "me/model", "--adapter", "me/lora", "--prompt", "a", "--max-new-tokens", "2"]) == 0
    )
    assert main(["inspect", "me/lora"]) == 0 and main(["inspect", "me/model"]) == 0
    flags = ["--model", "me/model", "--adapter", "me/lora", "--output", str(tmp_path / "merged")]
    assert main(["merge", *flags]) == 0
    assert jpo.load(tmp_path / "merged").logits([1, 2]).shape == jpo.load("me/model").logits([1, 2]).shape
    told = capsys.readouterr()
    assert "adapter me/lora" in told.out and "model me/model" in told.out
    assert "fetching me/model" in told.err and "MB" in told.err


# ---- what does not --------------------------------------------------------------------------------------------------


def test_401_a_bad_token(model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    told = refusal(jpo.load, "me/model")
    assert "model 'me/model'" in told and "401" in told and "hf auth login" in told and "HF_TOKEN" in told
    assert "hf_wrong" not in told


def test_401_and_404_a_repository_that_is_private_or_not_there(model, monkeypatch):
    model.private.add("me/model")
    for token in (None, "hf_reader"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
            assert jpo.load("me/model").source == "me/model"  # the token opens it
        told = refusal(jpo.load, "me/nothing")
        assert "no such path here" in told and "no such repository" in told and "HF_TOKEN" in told
        monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "HF_TOKEN" in refusal(jpo.load, "me/model")


def test_403_gated(model, monkeypatch):
    model.gated.add("me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    told = refusal(jpo.load, "me/model")
    assert f"accept the terms at {model.url}/me/model" in told


def test_a_revision_that_is_not_there(model):
    told = refusal(jpo.load, "me/model@v9")
    assert "no revision 'v9'" in told and "branch, a tag or a commit" in told


def test_429_says_how_long(model):
    model.status["me/model"] = (429, {"Retry-After": "17"})
    told = refusal(jpo.load, "me/model")
    assert "429" in told and "wait 17 seconds" in told and "HF_TOKEN" in told


def test_a_fault_of_the_server_and_the_copy_that_serves_then(model, capsys):
    model.status["me/model"] = (503, {})
    assert "503" in refusal(jpo.load, "me/model")
    model.status.clear()
    first = jpo.load("me/model").logits([1, 2])
    model.status["me/model"] = (503, {})
    assert np.array_equal(jpo.load("me/model").logits([1, 2]), first)
    assert "the copy of me/model in the cache serves" in capsys.readouterr().err


def test_no_connection(model, monkeypatch):
    jpo.load("me/model")
    address = "http://127.0.0.1:9"  # nobody listens there
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert jpo.load("me/model").source == "me/model"
    told = refusal(jpo.load, "me/other")
    assert (
        f"no such path here, and cannot reach {address}" in told
        and "HF_ENDPOINT" in told
        and "HF_HUB_OFFLINE=1" in told
    )


def test_offline_without_and_with_a_copy_and_with_half_of_one(model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = refusal(jpo.load, "me/model")
    assert "HF_HUB_OFFLINE is set" in told and str(constants.HF_HUB_CACHE) in told and model.log == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    jpo.load("me/model")
    before = len(model.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert jpo.load("me/model").source == "me/model" and len(model.log) == before
    assert "no whole copy" in refusal(jpo.load, "me/model@v1")  # another name of the revision was never asked for
    snapshot = os.path.join(constants.HF_HUB_CACHE, "models--me--model", "snapshots", COMMIT)
    os.unlink(os.path.join(snapshot, next(name for name in os.listdir(snapshot) if name.startswith("model-"))))
    assert "no whole copy" in refusal(jpo.load, "me/model")


def test_half_a_file_is_gone_on_with(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    write_directory(tmp_path / "source")
    files = hub.files["model", "me/model"] = files_of(tmp_path / "source")
    hub.cut["model.safetensors"] = [3 << 16]
    assert len(files["model.safetensors"]) > 4 << 16
    assert np.array_equal(jpo.load("me/model").logits([1, 2]), jpo.load(tmp_path / "source").logits([1, 2]))
    assert [entry[2] for entry in hub.gets("/cdn/model/me/model/model.safetensors")] == [None, f"bytes={3 << 16}-"]


def test_a_file_that_ends_early_every_time_is_no_file(hub, tmp_path):
    write_directory(tmp_path / "source")
    hub.files["model", "me/model"] = files_of(tmp_path / "source")
    hub.short.add("model.safetensors")  # a proxy that takes half for the whole
    assert "goes on where it stopped" in refusal(jpo.load, "me/model")
    hub.short.clear()
    assert jpo.load("me/model").source == "me/model"


def test_a_file_that_arrives_changed_is_refused_and_forgotten(hub, tmp_path):
    write_directory(tmp_path / "source")
    hub.files["model", "me/model"] = files_of(tmp_path / "source")
    hub.spoilt.add("model.safetensors")
    assert "SHA-256 differs" in refusal(jpo.load, "me/model")
    hub.spoilt.clear()
    assert np.array_equal(jpo.load("me/model").logits([1, 2]), jpo.load(tmp_path / "source").logits([1, 2]))


def test_pickles_and_strange_repositories(adapter):
    adapter.files["model", "me/pickle"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    told = refusal(jpo.load, "me/pickle")
    assert "pickles, which are never read" in told
    assert "is an adapter" in refusal(jpo.load, "me/lora")
    assert "it is no adapter" in refusal(read_adapter, "me/model")
    adapter.files["model", "me/bin"] = {"adapter_config.json": b"{}", "adapter_model.bin": b"x"}
    assert "adapter_model.bin is a pickle" in refusal(read_adapter, "me/bin")
    assert not adapter.gets("pytorch_model.bin") and not adapter.gets("adapter_model.bin")


def test_an_index_that_names_files_elsewhere_is_refused(hub):
    index = json.dumps({"weight_map": {"a": "../../../secret.safetensors"}}).encode()
    hub.files["model", "me/evil"] = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": index,
    }
    with pytest.raises(FormatError, match="leaves the directory"):
        jpo.load("me/evil")
    assert not [path for _, path, _ in hub.log if "secret" in path]


def test_without_huggingface_hub_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for function, name in ((jpo.load, "me/model"), (read_adapter, "me/lora"), (read_records, "me/pairs:x.jsonl")):
        with pytest.raises(MissingExtra, match=r"pip install 'jpo\[hub\]'"):
            function(name)


def test_without_datasets_the_command_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="pip install 'datasets>=4'.*me/pairs:FILE.jsonl"):
        read_records("me/pairs")


def test_the_environment_decides(hub, tmp_path):
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, which huggingface_hub reads when it is imported."""
    write_directory(tmp_path / "source")
    hub.files["model", "me/model"] = files_of(tmp_path / "source")
    hub.private.add("me/model")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_reader"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "jpo.cli.main", "inspect", "me/model"]

    def run(**changes):
        return subprocess.run(command, env={**environment, **changes}, capture_output=True, text=True)

    told = run(HF_HUB_OFFLINE="1")
    assert told.returncode == 1 and "HF_HUB_OFFLINE is set" in told.stderr
    told = run()
    assert told.returncode == 0 and "model me/model" in told.stdout, told.stderr
    assert (tmp_path / "home" / "hub" / "models--me--model").is_dir()
    told = run(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert told.returncode == 0, told.stderr


def test_a_data_set_through_the_package_datasets(hub, tmp_path):
    pytest.importorskip("datasets")
    hub.files["dataset", "me/pairs"] = {
        "train.jsonl": b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n' * 3,
        "test.jsonl": b'{"prompt": "q", "chosen": "c", "rejected": "r"}\n',
    }
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    code = (
        "from jpo.data import read_records\n"
        "rows = read_records('me/pairs')\n"
        "print(len(rows), rows[0], rows[2].where)\n"
        "print(read_records('me/pairs:test')[0]['prompt'])\n"
        "try: read_records('me/pairs:nothing')\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
        "try: read_records('me/none')\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    lines = told.stdout.splitlines()
    assert lines[0].startswith("3 {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}") and lines[0].endswith("me/pairs[2]")
    assert lines[1] == "q" and "nothing" in lines[2] and "NAME:SPLIT" in lines[2]
    assert "no such" in lines[3] and "me/none" in lines[3]


@pytest.mark.parametrize("file", ["../../../../evil.gguf", "a/../../evil.gguf", "/tmp/evil.gguf", "..\\evil.gguf"])
def test_a_repository_that_lists_files_elsewhere(hub, tmp_path, file):
    """It ended in a bare ValueError of huggingface_hub, or in a path beside the copy."""
    write_gguf(tmp_path / "x.gguf")
    hub.files["model", "mallory/model"] = {file: (tmp_path / "x.gguf").read_bytes(), "README.md": b"x"}
    assert "0 GGUF files answer to it" in refusal(jpo.load, "mallory/model:evil")
