"""The ranks of an MPI job: noticed by the launcher's environment, joined once, ended together.

Knows mpi4py, environment variables and processors; never models or steps.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from jpo.errors import JpoError, MissingExtra

# what launchers tell each process: MPICH, Intel MPI and srun --mpi=pmi2; Open MPI; MVAPICH; Cray
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PALS_NRANKS")
_PLACES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID", "SLURM_PROCID")
_SLURM = "SLURM_STEP_NUM_TASKS"  # of an srun step; a batch script or salloc has no step
SWITCH = "JPO_RANKS"  # "off": a process that MPI launched works alone
_WAIT = 5.0  # seconds that the other ranks leave rank 0 to say the same thing first, and its launcher to end the job


class Alone:
    """One process: every exchange is the identity. Also what Ranks offers."""

    rank, size = 0, 1
    parting = False  # all have agreed to end here: whoever ends now leaves nobody waiting

    @property
    def root(self) -> bool:
        """Whether this process writes, prints and decides."""
        return self.rank == 0

    def bcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        return value

    def gather(self, value: Any) -> list[Any] | None:
        """On rank 0 the values of all ranks in their order, elsewhere None."""
        return [value]

    def allgather(self, value: Any) -> list[Any]:
        """The values of all ranks in their order."""
        return [value]


class Ranks(Alone):
    """The processes of one MPI job; `comm` is a communicator of our own."""

    def __init__(self, comm: Any):
        self.comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def bcast(self, value: Any) -> Any:
        return self.comm.bcast(value, 0)

    def gather(self, value: Any) -> list[Any] | None:
        found: list[Any] | None = self.comm.gather(value, 0)
        return found

    def allgather(self, value: Any) -> list[Any]:
        return list(self.comm.allgather(value))


def announced() -> int | None:
    """How many ranks the launcher says that it started; None where no launcher is seen, or JPO_RANKS=off."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0"):
        return None
    for name in _SIZES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    tasks = os.environ.get(_SLURM, "")
    if tasks.isdigit() and (int(tasks) > 1 or "PMIX_RANK" in os.environ):
        return int(tasks)
    return None


def speaks() -> bool:
    """Whether this process is to say what every process of its launcher has to say: the first of them, by the
    environment, which needs no MPI."""
    places = [os.environ[name] for name in _PLACES if os.environ.get(name, "").isdigit()]
    return announced() is None or not places or int(places[0]) == 0


_joined: Alone | None = None


def joined() -> Alone:
    """The ranks of this job, or Alone without a launcher. The first call starts MPI and shares out the processors.

    JpoError where the launcher and mpi4py do not belong together; MissingExtra without mpi4py."""
    global _joined
    if _joined is None:
        count = announced()
        _joined = Alone() if count is None else _join(count)
    return _joined


def current() -> Alone:
    """As joined, without joining: Alone until somebody has."""
    return _joined or Alone()


def _join(count: int) -> Ranks:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtra(
            f"an MPI launcher started this process as one of {count} ({SWITCH}=off: each works alone), and training over "
            f"ranks needs mpi4py ({error}): pip install 'jpo[mpi]'"
        ) from None
    ranks = Ranks(MPI.COMM_WORLD.Dup())
    if ranks.size != count:
        raise JpoError(
            f"the launcher announces {count} ranks, mpi4py's MPI ({MPI.Get_library_version().split(chr(10))[0].strip()}) "
            f"sees {ranks.size}: start with that MPI's own mpiexec; with srun: --mpi=pmi2 or --mpi=pmix as it was built"
        )
    _share_processors(ranks)
    sys.excepthook = _ends_all
    return ranks


# ---- processors -----------------------------------------------------------------------------------------------------


def share(allowed: Sequence[int], neighbours: Sequence[Sequence[int]], place: int) -> list[int]:
    """The processors of local rank `place`: of those that it may use, its part, where ranks of one machine share them.

    neighbours: those that each local rank may use. Ranks that the launcher bound apart keep what they have; more ranks
    than processors: one each, in turn."""
    sharing = [other for other, theirs in enumerate(neighbours) if set(theirs) & set(allowed)]
    if len(sharing) == 1:
        return list(allowed)
    at, count = sharing.index(place), len(sharing)
    if count >= len(allowed):
        return [allowed[at % len(allowed)]]
    return list(allowed[at * len(allowed) // count : (at + 1) * len(allowed) // count])


def _share_processors(ranks: Ranks) -> None:
    """One thread for each processor of this rank's own: MPI launchers leave ranks of one machine on the same ones.

    JPO_NUM_THREADS, OMP-style launchers' bindings and JPO_PIN=0 (no binding) are obeyed."""
    import jpo

    host = os.uname().nodename
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    found = ranks.allgather((host, allowed))
    local = [rank for rank, (name, _) in enumerate(found) if name == host]
    own = share(allowed, [found[rank][1] for rank in local], local.index(ranks.rank))
    if len(own) == len(allowed):
        return
    crowded = len(local) > len(allowed)  # more ranks than processors: the system moves them as it sees fit
    if os.environ.get("JPO_PIN") != "0" and hasattr(os, "sched_setaffinity") and not crowded:
        os.sched_setaffinity(0, own)
    if "JPO_NUM_THREADS" not in os.environ:
        jpo.set_num_threads(len(own))


# ---- the end --------------------------------------------------------------------------------------------------------


def fail(message: str, status: int = 1) -> None:
    """Says why this rank cannot go on and ends the whole job, so that no other rank waits for it.

    What fails on every rank alike is said once: the others leave rank 0 some seconds to end the job first."""
    ranks = current()
    if ranks.size == 1:
        print(message, file=sys.stderr, flush=True)
        return
    if not ranks.root:
        time.sleep(_WAIT)
    print(f"rank {ranks.rank} of {ranks.size} ({os.uname().nodename}): {message}", file=sys.stderr, flush=True)
    abort(status)


def abort(status: int = 1) -> None:
    """Ends the job without a word."""
    ranks = current()
    if isinstance(ranks, Ranks) and ranks.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        ranks.comm.Abort(status)


def _ends_all(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook of a rank: an exception that nobody handles would leave the others waiting."""
    fail("".join(traceback.format_exception(kind, error, trace)).rstrip())
