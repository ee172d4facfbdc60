"""How much memory can still be had here: what the system has free, under the limits of the control groups. Knows no
models."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 1 << 60  # version 1 spells "no limit" as a number beyond any machine


def free_bytes(root: str = _ROOT, own: str = "/proc/self/cgroup", meminfo: str = "/proc/meminfo") -> int:
    """Bytes that this process can take before the system, or a control group above it, runs out. File pages count as
    free, because they are given up first."""
    limits = [_system(meminfo), *_groups(Path(root), own)]
    return max(0, min(limits))


def size(count: float) -> str:
    """Bytes for people, in GB of 2^30 as metrics.jsonl has them; small amounts in MB."""
    return f"{count / 2**30:.2f} GB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MB"


def _system(meminfo: str) -> int:
    try:
        with open(meminfo, encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path, own: str) -> list[int]:
    """What is left under the memory limit of each control group that holds this process, versions 2 and 1."""
    try:
        lines = Path(own).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            left += _walk(root, path, "memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
            left += _walk(root / "memory", path, *names)
    return left


def _walk(root: Path, path: str, limit: str, usage: str, file_pages: tuple[str, ...]) -> list[int]:
    """From the group at `path` up to `root`; in a container the path may be the host's and only the root is there."""
    left = []
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if root not in (folder, *folder.parents):
            break
        try:
            text = (folder / limit).read_text(encoding="ascii").strip()
            if text == "max" or int(text) >= _UNLIMITED:
                continue
            pages = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            used = int((folder / usage).read_text(encoding="ascii"))
            left.append(int(text) - used + sum(int(pages.get(name, 0)) for name in file_pages))
        except (OSError, ValueError):
            continue
    return left
