"""The engine's counters: time and arithmetic of each operator.

JPO_PROFILE=1 prints them as a table to stderr when Python ends, beside NumPy's float32 product on all cores, measured
at that moment; a dry run reads from them what another compute type would take. Knows operators, nothing of training.
"""

from __future__ import annotations

import atexit
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def requested() -> bool:
    """Whether the environment asks for the table."""
    return os.environ.get("JPO_PROFILE", "0") not in ("", "0")


def watch(name: str, core: Any) -> None:
    """Count the operators of `core` (a _core.Model) from now on; print its table at exit."""
    core.profile(True)
    start = time.perf_counter()
    atexit.register(lambda: print(table(name, core.profile(False), time.perf_counter() - start), file=sys.stderr))


def peak_gflops(runs: int = 7, size: int = 2048) -> float:
    """GF/s: the median of float32 products (size, size) by NumPy on all cores."""
    a, seconds = np.random.default_rng(0).random((size, size), dtype=np.float32), []
    for _ in range(runs):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return float(2e-9 * size**3 / statistics.median(seconds))


def table(name: str, counted: Mapping[str, tuple[int, float, float]], wall: float, peak: float | None = None) -> str:
    """Lines of text: operator, calls, seconds, share of the operators' time, GF/s, share of `peak` (measured if
    None)."""
    total = sum(seconds for _, seconds, _ in counted.values())
    peak = peak_gflops() if peak is None else peak
    lines = [f"{name}: {total:.2f} s in operators of {wall:.2f} s since it was loaded; NumPy's sgemm {peak:.0f} GF/s"]
    lines.append(f"{'operator':<24}{'calls':>8}{'seconds':>10}{'share':>8}{'GF/s':>8}{'of peak':>9}")
    for operator, (calls, seconds, flop) in sorted(counted.items(), key=lambda item: -item[1][1]):
        speed = flop / max(seconds, 1e-12) / 1e9
        products = f"{speed:8.0f}{100 * speed / peak:8.0f}%" if flop else f"{'-':>8}{'-':>9}"
        lines.append(f"{operator:<24}{calls:>8}{seconds:>10.3f}{100 * seconds / max(total, 1e-12):>7.1f}%{products}")
    return "\n".join(lines)


_PRODUCTS = ("linear", "linear backward, input", "head")  # what a compute type changes


def compute_costs(lm: Any, step: Callable[[], Any]) -> tuple[float, dict[str, float | str]]:
    """(seconds of one step, {compute type: seconds of the same step, or why it cannot run here}).

    The step runs once. The other types' times are estimates: its products with the model's weights, scaled by the
    measured speeds of a product of the model's widest layer; the rest stays.
    """
    from jpo.doctor import gflops

    lm._core.profile(True)
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    counted = lm._core.profile(requested())
    products = sum(counted[name][1] for name in _PRODUCTS if name in counted)
    speeds = gflops((lm.config["intermediate_size"], lm.config["hidden_size"], 512))
    own = speeds[lm.compute]
    assert isinstance(own, float), own
    costs: dict[str, float | str] = {
        compute: speed if isinstance(speed, str) else round(seconds + products * (own / speed - 1), 4)
        for compute, speed in speeds.items()
    }
    return seconds, costs
