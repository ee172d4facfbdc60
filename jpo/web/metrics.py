"""Counters and histograms of a server as Prometheus reads them (text format 0.0.4). Knows numbers; never requests."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for k, v in labels.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


class Counter:
    """Sums by labels."""

    def __init__(self, name: str, text: str):
        self.name, self.text = name, text
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, **labels: str) -> None:
        """One more, or so many."""
        key = tuple(labels.items())
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def lines(self) -> list[str]:
        """As Prometheus reads it."""
        head = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} counter"]
        return head + [f"{self.name}{_labels(dict(key))} {value:g}" for key, value in sorted(self._values.items())]


class Histogram:
    """Seconds in buckets."""

    def __init__(self, name: str, text: str):
        self.name, self.text = name, text
        self._counts, self._sum = [0] * (len(SECONDS) + 1), 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """One more."""
        with self._lock:
            self._counts[bisect.bisect_left(SECONDS, seconds)] += 1
            self._sum += seconds

    def lines(self) -> list[str]:
        """As Prometheus reads it."""
        out, total = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} histogram"], 0
        for bound, count in zip((*SECONDS, float("inf")), self._counts, strict=True):
            total += count
            out.append(f'{self.name}_bucket{{le="{"+Inf" if bound == float("inf") else format(bound, "g")}"}} {total}')
        return [*out, f"{self.name}_sum {self._sum:.6f}", f"{self.name}_count {total}"]


def gauge(name: str, text: str, value: float) -> list[str]:
    """A number of this moment."""
    return [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value:g}"]


def counted(name: str, text: str, value: float) -> list[str]:
    """A sum that is kept elsewhere."""
    return [f"# HELP {name} {text}", f"# TYPE {name} counter", f"{name} {value:g}"]
