"""Stages over executors: the same command for each shard, on processes of this machine, MPI ranks, Dask or Ray workers.

A shard is computed by a process of its own, whoever starts it, so that a lost worker costs its shard alone, which is
repeated. Workers meet in the file system: input, model and output must lie where all of them see them. Knows commands
and executors; never stages.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jpo.errors import JpoError, MissingExtra
from jpo.parallel.shards import Shard

ATTEMPTS = 3  # of a shard whose process was lost
_EACH = 2  # shards a worker, so that an even end is likely
_KINDS = "processes:N, mpi, dask:ADDRESS or ray:ADDRESS"
_LAUNCHED = ("PMI_", "PMIX_", "OMPI_", "MPI_", "HYDI_", "SLURM_STEP_NUM_TASKS")  # what makes a process look like a rank
_PR_SET_PDEATHSIG = 1
Progress = Callable[[int, "int | None"], None]  # (done, total)


@dataclass(frozen=True)
class Job:
    """A shard's command as a worker runs it."""

    arguments: tuple[str, ...]
    folder: str
    environment: tuple[tuple[str, str], ...] = ()


def _dies_with_parent() -> None:
    """A shard must not outlive the worker that started it: whoever repeats it would meet it at the same file."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_job(job: Job) -> str:
    """Runs one shard's command in a process of its own, again where that is killed; its standard output. JpoError with
    the command's own words where it fails."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCHED)}
    environment = clean | dict(job.environment) | {"JPO_RANKS": "off"}
    linux = sys.platform == "linux"
    for attempt in range(ATTEMPTS):
        done = subprocess.run(
            [sys.executable, "-m", "jpo", *job.arguments],
            cwd=job.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=_dies_with_parent if linux else None,
        )
        if done.returncode == 0:
            return done.stdout
        if done.returncode > 0 or attempt == ATTEMPTS - 1:
            break
    said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
    raise JpoError(f"{' '.join(job.arguments[-2:])}: {said[-1].removeprefix('jpo: ')}")


# ---- the executors --------------------------------------------------------------------------------------------------


def _number(spec: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise JpoError(f"--executor {spec}: expected processes:N with a positive number of processes")
    return int(text)


@contextmanager
def _processes(spec: str, rest: str) -> Iterator[tuple[Executor, int]]:
    """Threads that wait for one process each."""
    count = _number(spec, rest)
    with ThreadPoolExecutor(count) as pool:
        yield pool, count


@contextmanager
def _mpi(spec: str, rest: str) -> Iterator[tuple[Any, int]]:
    """mpi4py.futures over the ranks that a launcher started: rank 0 deals, the others work; None on those."""
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except ImportError:
        raise MissingExtra("--executor mpi needs mpi4py: pip install 'jpo[mpi]'") from None
    size = MPI.COMM_WORLD.Get_size()
    if size < 2:
        raise JpoError("--executor mpi: start it under a launcher, mpiexec -n N jpo ...: one rank deals, N - 1 work")
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as pool:
        yield pool, size - 1


@contextmanager
def _dask(spec: str, rest: str) -> Iterator[tuple[Any, int]]:
    """A Dask cluster's scheduler at ADDRESS; a lost worker's task goes to another by itself."""
    try:
        from distributed import Client
    except ImportError:
        raise MissingExtra("--executor dask:ADDRESS needs distributed: pip install 'jpo[dask]'") from None
    try:
        client = Client(rest, timeout=20)
    except (OSError, ValueError) as error:
        raise JpoError(f"--executor {spec}: no Dask scheduler answers there: {error}") from None
    with client:
        client.wait_for_workers(1, timeout=60)
        yield client.get_executor(retries=ATTEMPTS, pure=False), len(client.scheduler_info()["workers"])


class _Ray(Executor):
    """Ray's tasks as futures."""

    def __init__(self, ray: Any):
        self._run = ray.remote(max_retries=ATTEMPTS)(run_job)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        """`function` is run_job, which Ray knows already."""
        return self._run.remote(*arguments).future()


@contextmanager
def _ray(spec: str, rest: str) -> Iterator[tuple[Executor, int]]:
    """The Ray cluster at ADDRESS (auto: the one that runs here; local: one of this machine, for this command)."""
    try:
        import ray
    except ImportError:
        raise MissingExtra("--executor ray:ADDRESS needs ray: pip install 'jpo[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(**options | ({"include_dashboard": False} if rest == "local" else {"address": rest}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise JpoError(f"--executor {spec}: no Ray cluster answers there: {str(error).splitlines()[0]}") from None
    try:
        yield _Ray(ray), max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


_FOUND: dict[str, Callable[[str, str], Any]] = {"processes": _processes, "mpi": _mpi, "dask": _dask, "ray": _ray}


def _kind(spec: str) -> tuple[str, str]:
    kind, _, rest = spec.partition(":")
    if kind not in _FOUND or (kind == "mpi") == bool(rest):
        raise JpoError(f"--executor: expected {_KINDS}, got {spec!r}")
    return kind, rest


class Pool:
    """An executor that is open, and how many workers it has; `serving` on a rank that has worked for another."""

    def __init__(self, pool: Any, workers: int, shared: Sequence[tuple[str, str]] = ()):
        self._pool, self.workers, self._shared = pool, workers, tuple(shared)

    @property
    def serving(self) -> bool:
        """Whether this process is a rank that only works, and has nothing to say or to join afterwards."""
        return self._pool is None

    def run(self, arguments: Sequence[str], shards: int | None = None, progress: Progress | None = None) -> int:
        """Runs `jpo ARGUMENTS --shard i/n` for every i; n (0 on a rank that works for another).

        shards: n; default: two for each worker. JpoError, in the words of the first shard that failed; finished ones
        stay."""
        if self._pool is None:
            return 0
        if shards is not None and shards < 1:
            raise JpoError(f"--shards: expected a positive whole number, got {shards}")
        count = shards or _EACH * self.workers
        places = [str(Shard(index, count)) for index in range(count)]
        jobs = [Job((*arguments, "--shard", place), os.getcwd(), self._shared) for place in places]
        futures = [self._pool.submit(run_job, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                _result(future)
                if progress is not None:
                    progress(done, count)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return count


@contextmanager
def opened(spec: str) -> Iterator[Pool]:
    """The executor of --executor; JpoError for what is none, or where nobody answers. An MPI rank other than the first
    works for that one before the block begins."""
    kind, rest = _kind(spec)
    with _FOUND[kind](spec, rest) as (pool, workers):
        shared: dict[str, str] = {}
        if kind == "processes" and workers > 1:  # they share this machine's processors
            own = max(1, len(os.sched_getaffinity(0)) // workers)
            shared = {"JPO_NUM_THREADS": str(own), "JPO_PIN": "0", **_asked()}
        yield Pool(pool, workers, tuple(shared.items()))


def _result(future: Any) -> Any:
    """The future's result; of an error that Ray wraps into its own, that error."""
    try:
        return future.result()
    except JpoError as error:
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, JpoError) else error) from None


def _asked() -> dict[str, str]:
    return {name: os.environ[name] for name in ("JPO_NUM_THREADS", "JPO_PIN") if name in os.environ}
