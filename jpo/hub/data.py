"""Rows of a data set on the hub, through the package `datasets`: NAME, NAME:SPLIT, NAME:CONFIGURATION/SPLIT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jpo.errors import DataError, MissingExtra
from jpo.hub.faults import hub_library, in_one_line
from jpo.hub.names import HubName

_LEAST = 4  # the first major version of datasets that runs no code from the hub


def _library(name: HubName) -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra(
            f"data {str(name)!r}: no such file here, and a data set of the hub needs the package datasets; install it with: pip install "
            f"'datasets>={_LEAST}', or name one file of the repository: {name.repo}:FILE.jsonl"
        ) from None
    if int(datasets.__version__.split(".")[0]) < _LEAST:
        raise MissingExtra(
            f"data {str(name)!r}: datasets {datasets.__version__} may run code from the hub; update it with: pip install "
            f"'datasets>={_LEAST}'"
        )
    return datasets


def _split(name: HubName, config: str | None, datasets: Any) -> str:
    """The split that is meant where none is named: the only one, otherwise train."""
    splits = datasets.get_dataset_split_names(name.repo, config, revision=name.revision)
    if len(splits) == 1 or "train" in splits:
        return "train" if "train" in splits else str(splits[0])
    raise DataError(f"data {str(name)!r}: name one of its splits: {', '.join(f'{name.repo}:{s}' for s in splits)}")


def dataset_rows(name: HubName) -> Iterable[Mapping[str, Any]]:
    """The rows of one split. DataError names the splits or configurations to choose from; JpoError what was refused."""
    what = f"data {str(name)!r}"
    hub_library(what)
    datasets = _library(name)
    config, _, split = (name.part or "").rpartition("/")
    with in_one_line(what, name.repo, name.revision):
        try:
            chosen = split or _split(name, config or None, datasets)
            rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
                name.repo, config or None, split=chosen, revision=name.revision
            )
        except datasets.exceptions.DatasetNotFoundError as error:
            raise DataError(f"{what}: no such file here, and no such data set on the hub: {_first(error)}") from None
        except (datasets.exceptions.DatasetsError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{what}: {_first(error)} (NAME:SPLIT or NAME:CONFIGURATION/SPLIT chooses one)") from None
    return rows


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
