"""How fast this machine is where several ranks of it compute at the same time: they share memory, caches and clocks.

Knows processors and processes; never models.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from jpo.parallel.ranks import share

_MOST = 2  # processes a processor, beyond which nothing is measured


def seconds_together(work: Callable[[], Any], ranks: int) -> float | None:
    """Seconds of `work` by one of so many processes that do the same side by side, each on its share of the processors
    that this one may use, as ranks of one machine have it. None where they are far more than the processors, or where
    processes cannot be forked.

    work: does the same each time; it runs twice, the first run allocates. Children are copies of this process and end
    without a word."""
    if sys.platform != "linux":
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if ranks > _MOST * len(allowed):
        return None
    import jpo

    threads = jpo.get_num_threads()
    neighbours = [allowed] * ranks
    children = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; ours are made anew
            for place in range(1, ranks):
                child = os.fork()
                if child == 0:
                    _repeat(work, share(allowed, neighbours, place))
                children.append(child)
        _settle(share(allowed, neighbours, 0), ranks > len(allowed))
        work()
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        os.sched_setaffinity(0, allowed)
        jpo.set_num_threads(threads)


def _settle(processors: list[int], crowded: bool) -> None:
    """As jpo.parallel.ranks leaves a rank: bound to its processors unless there are more ranks than those."""
    import jpo

    if not crowded:
        os.sched_setaffinity(0, processors)
    jpo.set_num_threads(len(processors))


def _repeat(work: Callable[[], Any], processors: list[int]) -> None:
    """In a child: `work` until the parent has measured, whatever happens to it."""
    try:
        _settle(processors, False)
        while os.getppid() != 1:
            work()
    finally:
        os._exit(1)
