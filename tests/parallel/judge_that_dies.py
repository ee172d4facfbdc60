"""A judge for `--judge judge_that_dies:judge`: decides by the prompt's text, and once, as the environment says, its
process ("self") or the worker that started it ("parent") is killed in the middle of a shard."""

import hashlib
import os
import signal

asked = 0


def judge(prompt):
    global asked
    asked += 1
    marker, victim = os.environ.get("JPO_TEST_MARKER"), os.environ.get("JPO_TEST_VICTIM", "self")
    if marker and asked == 5:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid() if victim == "self" else os.getppid(), signal.SIGKILL)
    return "AB"[hashlib.sha256(str(prompt).encode()).digest()[0] % 2]
