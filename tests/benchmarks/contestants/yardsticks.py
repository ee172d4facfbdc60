"""What shares of the limit are measured against: NumPy's sgemm and the memory's read bandwidth."""

from __future__ import annotations

import statistics
import time
from typing import Any

from . import Contestant, Entry, Variant

PRODUCTS = 4  # a turn; three turns at least make the 12 products of the figure


def sgemm(work: Any, turns: Any) -> None:
    """float32 2048^3 products by NumPy on all cores."""
    import numpy as np

    a = np.random.default_rng(0).random((2048, 2048), dtype=np.float32)
    out = np.empty_like(a)
    kernel = blas_kernel()

    def repetition(turn: int) -> dict[str, Any]:
        rates = []
        for _ in range(PRODUCTS):
            start = time.perf_counter()
            np.matmul(a, a, out=out)
            rates.append(2 * 2048**3 / (time.perf_counter() - start))
        return {"rates": rates, "blas": kernel}

    turns.loop(repetition)


def blas_kernel() -> str:
    """The kernels that NumPy's OpenBLAS chose."""
    import numpy as np

    try:
        import threadpoolctl
    except ImportError:
        return f"NumPy {np.__version__} (kernel: pip install threadpoolctl)"
    libraries = threadpoolctl.threadpool_info()
    names = [f"{one['internal_api']} {one.get('version')} {one.get('architecture', '')}" for one in libraries]
    return f"NumPy {np.__version__}, " + ", ".join(names)


def bandwidth(work: Any, turns: Any) -> None:
    """Bytes a second that all cores read from an array larger than the caches."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    workers = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(1 << 27, dtype=np.float32), workers)  # 512 MiB
    pool = ThreadPoolExecutor(workers)
    total = sum(part.nbytes for part in parts)

    def _or(part: Any) -> Any:
        return np.bitwise_or.reduce(part.view(np.uint64))

    def rate(read: Any) -> float:
        start = time.perf_counter()
        list(pool.map(read, parts))
        return total / (time.perf_counter() - start)

    def repetition(turn: int) -> dict[str, Any]:
        best = max(statistics.median(rate(read) for _ in range(3)) for read in (np.max, np.sum, _or))
        return {"rates": [best]}

    turns.loop(repetition)


SGEMM = Entry(Contestant("NumPy sgemm", sgemm, (), ("numpy",), (), 0.3), Variant(""))
BANDWIDTH = Entry(Contestant("read bandwidth", bandwidth, (), ("numpy",), (), 0.6), Variant(""))
