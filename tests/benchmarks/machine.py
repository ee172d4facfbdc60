"""What the figures depend on: processor, instruction set, BLAS kernels, allocators, versions."""

from __future__ import annotations

import ctypes.util
import glob
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from typing import Any

CLEARED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # they would slow NumPy's sgemm, the yardstick


THREADS = "JPO_BENCHMARK_THREADS"  # set by --threads: as many in every contestant, instead of the library's own choice


def child_environment(allocator: str) -> dict[str, str]:
    """The environment of a contestant's process."""
    environment = {name: value for name, value in os.environ.items() if name not in CLEARED}
    if threads := os.environ.get(THREADS):
        environment.update(dict.fromkeys(("JPO_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads))
    environment.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1")
    if allocator == "tcmalloc":
        library = tcmalloc()
        assert library is not None
        environment["LD_PRELOAD"] = " ".join(filter(None, [library, environment.get("LD_PRELOAD")]))
    return environment


def tcmalloc() -> str | None:
    """Path of google-perftools' allocator, or None where it is not installed (Debian: libtcmalloc-minimal4)."""
    for pattern in ("/usr/lib/*/libtcmalloc_minimal.so.4", "/usr/lib*/libtcmalloc_minimal.so*"):
        if found := sorted(glob.glob(pattern)):
            return found[0]
    return ctypes.util.find_library("tcmalloc_minimal")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """The processor's name, with family and model where the name is a hypervisor's."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                fields.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor()
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def available_gigabytes() -> float:
    """Memory that new processes may take."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024 / 1e9


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, or "not installed"."""
    found = {}
    for name in sorted(set(distributions)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe() -> dict[str, Any]:
    """The machine, for the report's head and the JSON file."""
    from jpo import _core

    info = dict(_core.system_info())
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jpo": info,
        "allocators": {"glibc": platform.libc_ver()[1], "tcmalloc": tcmalloc()},
        "cleared": [name for name in CLEARED if name in os.environ],
    }
