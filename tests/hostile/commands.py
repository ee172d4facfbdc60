"""Commands under the shim crash_point.c, each in a child of one process that has imported everything: a run costs what
it does, not what Python's start costs. `python commands.py` is that process; Commands speaks with it over its pipes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Commands:
    """run(argv, folder, **faults) -> (exit status, or minus the signal; calls below the folder; what it printed)."""

    def __init__(self, shim, scratch):
        self.log = scratch / "log"
        environment = {**os.environ, "LD_PRELOAD": str(shim), "JPO_NUM_THREADS": "1", "JPO_PIN": "0"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, argv, folder, variables=None, annotator=None, **faults):
        """annotator: the file in which a person at the command's page notes what was acknowledged."""
        ((status, calls),), (text,) = self.at_once(1, argv, folder, variables, annotator, **faults)
        return status, calls, text

    def at_once(self, count, argv, folder, variables=None, annotator=None, **faults):
        """The same of `count` processes that begin together: ([(status, calls)], [what each printed])."""
        logs = [f"{self.log}-{index}" for index in range(count)]
        request = {"argv": [str(part) for part in argv], "logs": logs}
        request["environment"] = {"JPO_CRASH_DIR": str(folder), **(variables or {})}
        request |= {"annotator": str(annotator)} if annotator else {}
        request["environment"] |= {f"JPO_CRASH_{key.upper()}": str(value) for key, value in faults.items()}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline()), [Path(log).read_text(errors="replace") for log in logs]

    def close(self):
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


def child(request, log, counter):
    import ctypes
    import traceback

    from jpo.cli.main import main

    log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shim = ctypes.CDLL(None)
    shim.jpo_crash_calls.restype = ctypes.c_long
    shim.jpo_crash_reset()
    os.environ.update(request["environment"])
    argv, status = request["argv"], 99
    if "annotator" in request:
        from tests.hostile import annotator

        port = annotator.free_port()
        annotator.start(port, request["annotator"])
        argv = [*argv, "--port", str(port)]
    try:
        status = main(argv)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # the test reads the traceback as a failure
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os.write(counter, str(shim.jpo_crash_calls()).encode())
    os._exit(status)


def started(request, log):
    """(process, where it will say how many calls it made)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(request, log, write)
    os.close(write)
    return pid, read


def ended(pid, read):
    """(exit status, calls)."""
    calls = os.read(read, 100)
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(calls or 0)


def serve():
    import jpo.cli.commands.study
    import jpo.study  # noqa: F401

    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps([ended(*begun) for begun in [started(request, log) for log in request["logs"]]]), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve()
