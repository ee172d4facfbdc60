"""What of a directory goes to the hub, and the commit that brings it there.

An adapter, a merged model or GGUF files, by exact names, with their card and licence. Checkpoints, optimizer state,
journals of judges, samples and pickles stay here: they hold other people's texts, or run when they are opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import NamedTuple

from jpo.errors import JpoError
from jpo.hub.download import ADAPTER, INDEX, SMALL, WEIGHTS, bars
from jpo.hub.faults import LOGIN, endpoint, hub_library, in_one_line

_ALONGSIDE = ("README.md", "LICENSE*", "NOTICE*", "Modelfile")
_MODEL = (*SMALL, WEIGHTS, INDEX, "model-*-of-*.safetensors", "vocab.json", "merges.txt", "tokenizer.model")
_NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.py", "*.so")  # not even when included by name
_CHECKPOINT = ("trainer_state.json", "optimizer.safetensors")
_TEXTS = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".jinja", ".csv", "Modelfile")
_KEY = re.compile(rb"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,})")
_TEXT_LIMIT = 64 << 20  # bytes of a text that are searched for keys


class Upload(NamedTuple):
    """What goes (name in the directory, bytes), what stays, and what the person should know before."""

    kind: str  # adapter, model, GGUF
    files: list[tuple[str, int]]
    left: list[str]
    warnings: list[str]


def _kind(folder: str, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """What the directory holds, and the patterns of its files."""
    if ADAPTER[0] in names and ADAPTER[1] in names:
        return "adapter", ADAPTER
    if "config.json" in names and (WEIGHTS in names or INDEX in names):
        return "model", _MODEL
    if any(name.endswith(".gguf") for name in names):
        return "GGUF", ()
    raise JpoError(
        f"{folder}: neither an adapter (adapter_config.json, adapter_model.safetensors) nor a model (config.json, {WEIGHTS}) "
        "nor a GGUF file; give the --output of jpo train, jpo sft, jpo merge or jpo export"
    )


def _refuse_checkpoint(folder: str, names: Sequence[str]) -> None:
    held = [name for name in _CHECKPOINT if name in names]
    if held:
        raise JpoError(
            f"{folder}: is a training checkpoint ({held[0]}), not the end of a run: push the run's own directory, or copy "
            f"{', '.join(ADAPTER)} to a directory of their own"
        )


def _check_whole(folder: str, kind: str, names: Sequence[str]) -> None:
    """FormatError or JpoError where an adapter cannot be read or a shard is missing: nobody should fetch a half."""
    if kind == "adapter":
        from jpo.formats.peft import read_adapter

        read_adapter(folder)
    if kind == "model" and WEIGHTS not in names:
        from jpo.formats.huggingface import shards_of

        missing = sorted(set(shards_of(folder, os.path.join(folder, INDEX))) - set(names))
        if missing:
            raise JpoError(f"{folder}: {INDEX} names {missing[0]}, which is not there; write the model again")


def _refuse_keys(folder: str, names: Sequence[str]) -> None:
    for name in names:
        path = os.path.join(folder, name)
        if not name.endswith(_TEXTS) or name == "tokenizer.json" or os.path.getsize(path) > _TEXT_LIMIT:
            continue
        with open(path, "rb") as file:
            found = _KEY.search(file.read())
        if found:
            raise JpoError(
                f"{path}: holds what looks like a secret key ({found.group()[:5].decode()}...); take it out, and revoke it "
                "if it was ever published"
            )


def _warnings(folder: str, kind: str, names: Sequence[str]) -> list[str]:
    told = []
    if kind == "adapter":
        from jpo.formats.peft import read_adapter

        base = read_adapter(folder)[0].base_model_name_or_path or ""
        if os.path.isabs(base):
            told.append(
                f"adapter_config.json names the base model by a path of this machine ({base}): write the hub's name of the "
                "base model there, so that others find it"
            )
    if "README.md" not in names:
        told.append("there is no README.md: people will not see what was trained on what")
    return told


def plan(folder: str, include: Sequence[str] = ()) -> Upload:
    """What `jpo push` would send of a directory; nothing is sent. `include` are further names or patterns in it.

    JpoError for what is neither adapter nor model, a checkpoint, a model in halves, a file that holds a key."""
    if not os.path.isdir(folder):
        raise JpoError(f"{folder}: no such directory")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    _refuse_checkpoint(folder, names)
    kind, patterns = _kind(folder, names)
    wanted = (*patterns, *_ALONGSIDE, "*.gguf", *include)
    for pattern in include:
        if not any(fnmatch(name, pattern) for name in names):
            raise JpoError(f"--include {pattern}: {folder} has no such file (folders in it are never sent)")
        if any(fnmatch(name, pattern) and _matches(name, _NEVER) for name in names):
            raise JpoError(f"--include {pattern}: pickles and code are never sent: who opens them would run them")
    chosen = [name for name in names if _matches(name, wanted) and not _matches(name, _NEVER)]
    _check_whole(folder, kind, names)
    _refuse_keys(folder, chosen)
    left = sorted(
        entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder) if entry.name not in chosen
    )
    sizes = [(name, os.path.getsize(os.path.join(folder, name))) for name in chosen]
    return Upload(kind, sizes, left, _warnings(folder, kind, chosen))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def push(
    folder: str,
    repo: str,
    upload: Upload,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Sends the planned files as one commit, in a repository that is made where there is none; the commit's address.

    JpoError: no token, a public repository where a private one is asked for, what the hub refuses, with the remedy."""
    hub = hub_library(f"push to {repo!r}")
    what = f"push to {repo!r}"
    if hub.get_token() is None:
        raise JpoError(f"{what}: no token; {LOGIN}, to one with the right to write")
    api = hub.HfApi(endpoint=endpoint(), library_name="jpo")
    operations = [hub.CommitOperationAdd(name, os.path.join(folder, name)) for name, _ in upload.files]
    with in_one_line(what, repo, revision, writing=True), bars():
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise JpoError(
                f"{what}: the repository exists and is public; make it private at {endpoint()}/{repo}/settings, choose "
                "another name, or leave out --private"
            )
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=message or "Upload with jpo", revision=revision)
    return str(commit.commit_url)
