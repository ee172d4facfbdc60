"""python -m tests.hostile.fuzz TARGET|all [--cases N] [--seconds S] [--seed S] [--case I] [--keep DIR] [--coverage]
[--grow]

Runs mutated inputs through a target in a child process, which its parent watches. A case fails where the process ends
by a signal, takes more than 10 s of processor time or 60 s of the clock, grows by more than 4 times its input plus 100
MB, or raises what is no answer (for files: anything but JpoError). Failing cases are written to --keep, one line each
is printed, and the exit status is 1. --case I runs one case in this process: for the debugger. --coverage lets atheris
choose the inputs by the branches that they reach, for --seconds (default 600). Of the cases the first are the files of
corpus/TARGET, one in eight of the others is one of them with further faults; --grow adds to it.
"""

import argparse
import json
import mmap
import os
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from .memory import Mark

HANG_CPU, HANG_WALL, SPARE = 10.0, 60.0, 100 << 20
LIMIT = 3 << 30  # bytes of address space beyond what the child begins with
BATCH = 10_000  # cases of one child, so that what one leaves behind does not reach all
STATE = struct.Struct("<qd")  # case, its start by processor time (below 0: not yet)


def options():
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__.split("\n\n")[1])
    parser.add_argument("target")
    parser.add_argument("--cases", type=int, help="default 2000; with --coverage no end")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop a target after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "jpo-fuzz")
    return parser.parse_args()


def run_case(target, seed, index, folder, mark):
    """None, or (kind, text) of the failure."""
    from . import targets

    rng = targets.generator(seed, index)
    case = target.case(rng, index)
    target.write(case, targets.emptied(folder))
    mark.begin()
    try:
        target.run(folder, case, rng)
    except target.allowed:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # PanicException and SystemExit are findings too
        place = traceback.extract_tb(error.__traceback__)
        ours = next((frame for frame in reversed(place) if f"{os.sep}jpo{os.sep}" in frame.filename), place[-1])
        where = f"{Path(ours.filename).name}:{ours.lineno}"
        return f"{type(error).__name__} at {where}", str(error)[:200]
    grown = mark.end()
    if grown > 4 * target.size(case) + SPARE:
        return "memory", f"grew by {grown >> 20} MB for {target.size(case)} bytes"
    return None


def child(name, seed, first, last, state, folder, report):
    """The cases [first, last); failures go to `report` as JSON lines."""
    from . import targets

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    target, mark = targets.named(name), Mark()
    with open(report, "a", encoding="utf-8") as file:
        for index in range(first, last):
            state[: STATE.size] = STATE.pack(index, time.process_time())
            failure = run_case(target, seed, index, folder, mark)
            if failure:
                file.write(json.dumps([index, *failure]) + "\n")
                file.flush()
    state[: STATE.size] = STATE.pack(last, time.process_time())


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watched(pid, state):
    """(wait status, whether it was ended for hanging). A second that both processes were stopped for is no hang: of a
    look that comes late, only a second counts."""
    case, waited, before = -1, 0.0, time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, False
        time.sleep(0.02)
        reached, began = STATE.unpack_from(state)
        now = time.monotonic()
        waited = waited + min(now - before, 1.0) if reached == case else 0.0
        case, before = reached, now
        if began >= 0 and (waited > HANG_WALL or processor_seconds(pid) - began > HANG_CPU):
            os.kill(pid, 9)
            return os.waitpid(pid, 0)[1], True


def fuzz(name, arguments, scratch):
    """(cases run, failures [(index, kind, text)])."""
    state, failures, at = mmap.mmap(-1, 4096), [], 0
    report = scratch / "report"
    end = time.monotonic() + arguments.seconds
    while at < arguments.cases and time.monotonic() < end:
        report.write_text("")
        last = min(arguments.cases, at + BATCH)
        state[: STATE.size] = STATE.pack(at, -1.0)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(name, arguments.seed, at, last, state, scratch / "case", report)
                status = 0
            except BaseException:  # the child must never return into the parent's loop
                traceback.print_exc()
            os._exit(status)
        status, hung = watched(pid, state)
        failures += [tuple(json.loads(line)) for line in report.read_text().splitlines()]
        reached = STATE.unpack_from(state)[0]
        if hung:
            failures.append((reached, "hang", "over its time"))
        elif os.WIFSIGNALED(status):
            failures.append((reached, f"signal {os.WTERMSIG(status)}", ""))
        elif status:
            failures.append((reached, "the target itself failed", f"status {status}"))
        at = last if reached >= last else reached + 1
        if arguments.cases > BATCH:  # a run of hours that is ended from outside has said what it found
            print(f"{name}: {at} cases so far, {len(failures)} failures {failures[-1:]}", file=sys.stderr, flush=True)
        if status and not hung and not os.WIFSIGNALED(status):
            break
    return at, failures


def keep(name, arguments, index):
    """Writes the case's files to the folder of failures."""
    from . import targets

    place = targets.emptied(arguments.keep / f"{name}-{arguments.seed}-{index}")
    target = targets.named(name)
    case = target.case(targets.generator(arguments.seed, index), index)
    targets.Target.write(target, case, place)


def guided(arguments, scratch):
    """The exit status of a guided run, in a child: libFuzzer ends its process, and the scratch would stay."""
    pid = os.fork()
    if pid == 0:
        from .guided import run

        seconds, cases = min(arguments.seconds, 600), -1 if arguments.cases is None else arguments.cases
        run(arguments.target, seconds, cases, arguments.seed, arguments.keep, scratch)
        os._exit(0)
    return abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def main():
    arguments = options()
    os.environ.setdefault("JPO_NUM_THREADS", "2")
    os.environ.setdefault("JPO_PIN", "0")
    os.environ.setdefault("RUST_BACKTRACE", "0")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as scratch:
        os.environ["JPO_FUZZ_SEEDS"] = str(Path(scratch) / "seeds")
        (Path(scratch) / "seeds").mkdir()
        if arguments.coverage:
            sys.exit(guided(arguments, Path(scratch)))
        from . import corpus, targets

        arguments.cases = 2000 if arguments.cases is None else arguments.cases
        names = list(targets.TARGETS) if arguments.target == "all" else [arguments.target]
        if arguments.case is not None:
            found = run_case(targets.named(names[0]), arguments.seed, arguments.case, Path(scratch) / "case", Mark())
            sys.exit(f"{names[0]} {arguments.case}: {found}" if found else 0)
        if arguments.grow:
            for name in names:
                added = corpus.grow(name, targets.named(name), arguments.cases, arguments.seed, Path(scratch) / "case")
                print(f"{name}: {added} files added", flush=True)
            return
        failed = 0
        for name in names:
            began = time.monotonic()
            cases, failures = fuzz(name, arguments, Path(scratch))
            kinds = {}
            for index, kind, text in failures:
                kinds.setdefault(kind, []).append((index, text))
            rate = cases / (time.monotonic() - began)
            print(f"{name}: {cases} cases, {len(failures)} failures, {rate:.0f} cases/s", flush=True)
            for kind, found in sorted(kinds.items()):
                print(f"  {kind}: {len(found)}, first case {found[0][0]}: {ascii(found[0][1])}", flush=True)
                keep(name, arguments, found[0][0])
            failed += len(failures)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
