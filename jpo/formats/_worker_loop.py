"""The process of a worker (worker.py): limits, then requests on standard input, one reply on standard output each.

Run as a file, outside the package, so that it imports neither jpo nor NumPy: _worker_loop.py SCRIPT FOLDER... The
script beside this file has MEMORY_LIMIT and answering(), which imports the packages found in the folders and returns
the function from a request to a reply, both what JSON holds.
"""

import json
import runpy
import signal
import struct
import sys

HEAD = struct.Struct("<Id")  # of a request: bytes that follow, seconds of processor time that it may take
MOST = 500  # characters of an error that are told


def limit_process(memory):
    """`memory`: bytes of address space. No file grows, and no core is left."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock and the limit on output remain
        return
    for name, value in (("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            pass  # a lower limit stands already, or the system (macOS) does not take this one


def limit_time(seconds):
    """The system ends this process after so much processor time, whatever it does then; 0: no end."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def replied(answer, request, memory):
    """The answer, or {"error": ...}: what foreign code does wrong is its own error, a bare Exception or a panic too."""
    try:
        return answer(request)
    except MemoryError:
        return {"error": f"it needs more than {memory >> 20} MB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except BaseException as error:
        line = getattr(error, "lineno", None)
        place = f"line {line}: " if line else ""
        return {"error": f"{place}{type(error).__name__}: {str(error)[:MOST]}"}


def main():
    script, *folders = sys.argv[1:]
    sys.path[:0] = folders  # where the parent found the packages
    names = runpy.run_path(script)
    answer, memory = names["answering"](), names["MEMORY_LIMIT"]
    limit_process(memory)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(HEAD.size)) == HEAD.size:
        length, seconds = HEAD.unpack(head)
        request = json.loads(source.read(length))
        limit_time(seconds)
        reply = json.dumps(replied(answer, request, memory)).encode("ascii")
        limit_time(0)
        sink.write(struct.pack("<I", len(reply)) + reply)
        sink.flush()


if __name__ == "__main__":
    main()
