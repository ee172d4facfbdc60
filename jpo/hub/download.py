"""Models, adapters and files of data from repositories of the hub: fetched into huggingface_hub's cache, by exact name.

One commit at a time: the revision is resolved once, every file is of that commit. A copy in the cache that is whole
serves when the hub cannot be reached.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jpo.disk import sha256_of
from jpo.errors import FormatError, JpoError
from jpo.hub.faults import endpoint, hub_library, in_one_line, is_passing
from jpo.hub.names import HubName

SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)  # of a model, beside its weights
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "jpo_config.json")
Choice = Callable[[Sequence[str]], list[str]]  # the files of a repository -> those to fetch, or a FormatError


class _Repository(NamedTuple):
    """What is asked for, and how errors call it."""

    what: str  # model 'USER/NAME@REVISION'
    name: HubName
    kind: str | None = None  # "dataset"; None is a model

    def fault(self, text: str) -> FormatError:
        return FormatError(f"{self.what}: {text}")


# ---- what is wanted of a repository ---------------------------------------------------------------------------------


def _gguf(repository: _Repository, files: Sequence[str]) -> list[str]:
    """The GGUF file that the name's part means: its name, or what only one name holds (Q4_K_M)."""
    known = sorted(file for file in files if file.lower().endswith(".gguf"))
    part = repository.name.part or ""
    found = [part] if part in known else [file for file in known if part.lower() in file.lower()]
    if len(found) == 1:
        return found
    listed = ", ".join(f"{repository.name.repo}:{file}" for file in (found or known)[:12]) or "none"
    raise repository.fault(f"{len(found)} GGUF files answer to it; those of the repository: {listed}")


def _model(repository: _Repository) -> Choice:
    def choose(files: Sequence[str]) -> list[str]:
        if repository.name.part is not None:
            return _gguf(repository, files)
        weights = [file for file in (WEIGHTS, INDEX) if file in files][:1]
        if "config.json" in files and weights:
            return [*(file for file in SMALL if file in files), *weights]
        if ADAPTER[0] in files:
            raise repository.fault("is an adapter: give its base model as the model, and this as the adapter")
        if any(file.lower().endswith(".gguf") for file in files):
            return _gguf(repository, files)
        pickles = any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files)
        raise repository.fault(
            "the repository holds no safetensors weights with a config.json and no GGUF file"
            + ("; its weights are pickles, which are never read: look for a safetensors revision" if pickles else "")
        )

    return choose


def _adapter(repository: _Repository) -> Choice:
    def choose(files: Sequence[str]) -> list[str]:
        if ADAPTER[0] not in files or ADAPTER[1] not in files:
            pickle = " (adapter_model.bin is a pickle and is never read)" if "adapter_model.bin" in files else ""
            raise repository.fault(f"the repository lacks {ADAPTER[0]} or {ADAPTER[1]}{pickle}: it is no adapter")
        return [file for file in ADAPTER if file in files]

    return choose


def _file(repository: _Repository) -> Choice:
    def choose(files: Sequence[str]) -> list[str]:
        if repository.name.part not in files:
            some = ", ".join(sorted(files)[:12]) or "none"
            raise repository.fault(f"the repository has no file {repository.name.part!r}; it has: {some}")
        return [str(repository.name.part)]

    return choose


# ---- getting it -----------------------------------------------------------------------------------------------------


def _shards(folder: str) -> list[str]:
    """The weight files that an index names; none where the folder has one file of weights."""
    from jpo.formats.huggingface import shards_of

    index = os.path.join(folder, INDEX)
    whole = os.path.exists(os.path.join(folder, WEIGHTS))
    return [] if whole or not os.path.exists(index) else sorted(shards_of(folder, index))


def _in_cache(repository: _Repository, choose: Choice) -> tuple[str, list[str]] | None:
    """(folder, files) of a whole copy in the cache; None where there is none or a file of it is missing."""
    name = repository.name
    try:
        folder = hub_library(repository.what).snapshot_download(
            name.repo, repo_type=repository.kind, revision=name.revision, local_files_only=True
        )
    except FileNotFoundError:  # LocalEntryNotFoundError is one
        return None
    names = [os.path.relpath(os.path.join(at, file), folder) for at, _, files in os.walk(folder) for file in files]
    try:
        wanted = choose([file.replace(os.sep, "/") for file in names])
    except FormatError:
        return None
    if not all(os.path.exists(os.path.join(folder, file)) for file in _shards(folder)):
        return None
    return folder, wanted


def _from_cache(repository: _Repository, choose: Choice, why: str, remedy: str) -> tuple[str, list[str]]:
    from huggingface_hub import constants

    found = _in_cache(repository, choose)
    if found is None:
        raise JpoError(
            f"{repository.what}: {why}, and the cache {constants.HF_HUB_CACHE} holds no whole copy; {remedy}"
        )
    return found


@contextlib.contextmanager
def bars() -> Iterator[None]:
    """huggingface_hub's progress bars, on a terminal alone."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _check_digest(repository: _Repository, path: str, wanted: str) -> None:
    """FormatError where a fresh file is not the one that the hub lists; it goes out of the cache then."""
    if sha256_of(path) != wanted:
        os.unlink(os.path.realpath(path))
        os.unlink(path)
        raise repository.fault(
            f"{os.path.basename(path)} did not arrive as it was sent (its SHA-256 differs); it was removed from the cache: "
            "repeat the command"
        )


def _fetch_files(
    repository: _Repository, files: Sequence[str], revision: str | None, digests: Mapping[str, str]
) -> str:
    """The folder of the commit's files after fetching those named; `digests` are the SHA-256 of large files."""
    hub = hub_library(repository.what)
    name, place = repository.name, ""
    for file in files:
        options: dict[str, Any] = {"repo_type": repository.kind, "revision": revision}
        known = hub.try_to_load_from_cache(name.repo, file, **options)
        path = hub.hf_hub_download(name.repo, file, endpoint=endpoint(), library_name="jpo", **options)
        if file in digests and not (isinstance(known, str) and os.path.exists(known)):
            _check_digest(repository, path, digests[file])
        place = os.path.normpath(path)[: -len(os.path.normpath(file)) - 1]
        revision = os.path.basename(place)  # the commit: every other file is of the same one
    return place


def _lies_inside(file: str) -> bool:
    """Whether a name that the hub lists is one of a file below the repository's folder."""
    parts = file.replace("\\", "/").split("/")
    return not {"", ".", ".."} & set(parts) and not parts[0].endswith(":")


def _fetch(repository: _Repository, choose: Choice) -> tuple[str, list[str]]:
    """(folder, files) in the cache, fetched where they are not there yet."""
    hub = hub_library(repository.what)
    name = repository.name
    api = hub.HfApi(endpoint=endpoint(), library_name="jpo")
    info = api.repo_info(name.repo, repo_type=repository.kind, revision=name.revision, files_metadata=True)
    listed = [entry for entry in info.siblings or () if _lies_inside(entry.rfilename)]
    sizes = {entry.rfilename: entry.size or 0 for entry in listed}
    digests = {entry.rfilename: entry.lfs.sha256 for entry in listed if entry.lfs}
    wanted = choose(list(sizes))
    missing = [
        file
        for file in wanted
        if not isinstance(
            hub.try_to_load_from_cache(name.repo, file, repo_type=repository.kind, revision=info.sha), str
        )
    ]
    if missing:
        print(
            f"jpo: fetching {name} from {endpoint()} ({len(missing)} files, "
            f"{sum(sizes[file] for file in missing) / 1e6:.1f} MB) ...",
            file=sys.stderr,
        )
    with bars():
        folder = _fetch_files(repository, wanted, name.revision, digests)
        shards = _shards(folder) if INDEX in wanted else []
        if shards:
            _fetch_files(repository, shards, os.path.basename(folder), digests)
    return folder, wanted


def _obtain(repository: _Repository, choose: Choice) -> tuple[str, list[str]]:
    """(folder, files): from the hub, or from the cache where the user says so or the hub cannot be had just now."""
    hub_library(repository.what)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _from_cache(
            repository,
            choose,
            "no such path here, HF_HUB_OFFLINE is set",
            "repeat the command once without it, with a connection",
        )
    name = repository.name
    with in_one_line(repository.what, name.repo, name.revision):
        try:
            return _fetch(repository, choose)
        except Exception as error:
            found = _in_cache(repository, choose) if is_passing(error) or is_passing(error.__cause__ or error) else None
            if found is None:
                raise
            print(f"jpo: {endpoint()} does not answer; the copy of {name} in the cache serves", file=sys.stderr)
            return found


def is_adapter(name: HubName) -> bool:
    """Whether the repository holds an adapter and no model. JpoError: what was refused, and the remedy."""
    repository = _Repository(f"repository {str(name)!r}", name)

    def choose(files: Sequence[str]) -> list[str]:
        if name.part is None and ADAPTER[0] in files and "config.json" not in files:
            return [ADAPTER[0]]
        return _model(repository)(files)[:1]

    return _obtain(repository, choose)[1] == [ADAPTER[0]]


def model_path(name: HubName) -> str:
    """The directory of a model, or its GGUF file, in the cache. JpoError: what was refused, and the remedy."""
    repository = _Repository(f"model {str(name)!r}", name)
    folder, files = _obtain(repository, _model(repository))
    return os.path.join(folder, files[0]) if files[0].lower().endswith(".gguf") else folder


def adapter_path(name: HubName) -> str:
    """The directory of an adapter in the cache. JpoError: what was refused, and the remedy."""
    repository = _Repository(f"adapter {str(name)!r}", name)
    if name.part is not None:
        raise repository.fault("an adapter is a whole repository: leave out what follows the colon")
    return _obtain(repository, _adapter(repository))[0]


def data_path(name: HubName) -> str:
    """One file of a data set's repository, in the cache. JpoError: what was refused, and the remedy."""
    repository = _Repository(f"data {str(name)!r}", name, "dataset")
    folder, files = _obtain(repository, _file(repository))
    return os.path.join(folder, files[0])
