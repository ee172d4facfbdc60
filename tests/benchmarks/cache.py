"""What an interrupted run has already measured: one file a case, dropped when the run ends."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jpo
from jpo import _core


def fingerprint(settings: dict[str, Any]) -> str:
    """Changes with the engine, jpo's modules, this command's files and settings: then nothing is taken over."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    package = Path(jpo.__file__).parent
    for path in sorted([Path(_core.__file__), *package.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Cache:
    """Finished cases of this run, under `folder`."""

    def __init__(self, folder: Path, mark: str):
        for old in folder.glob("run-*"):  # interrupted runs of other engines and settings
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
        self._folder = folder / f"run-{mark}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, case: str) -> dict[str, Any] | None:
        """The case's results, or None."""
        path = self._folder / f"{case}.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def put(self, case: str, results: dict[str, Any]) -> None:
        """Keep the case's results, whole or not at all."""
        path = self._folder / f"{case}.json"
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(results), encoding="utf-8")
        os.replace(aside, path)

    def drop(self) -> None:
        """The run is over."""
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()
