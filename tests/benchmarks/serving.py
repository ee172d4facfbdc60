"""Throughput of `jpo serve`: `python -m tests.benchmarks.serving [--model smollm2-135m] [--compute int16]` asks with 1,
4, 16 and 64 streams at once, in OpenAI's form, and prints tokens/s, time to the first token and memory. --peer
LLAMA-SERVER asks llama.cpp's server the same instead, over the same GGUF file with as many threads and a slot for each
stream."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import httpx2  # noqa: E402
from web.servers import Serve  # noqa: E402

PROMPT = (
    "Write about how people keep basil, thyme and mint fresh in a kitchen that has little light and no garden. First,"
)


def stream(url, model, tokens, seed, out):
    """(seconds to the first token, tokens) of one streamed completion."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0.5, "seed": seed, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    start, first, used = time.perf_counter(), None, 0
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if first is None and chunk["choices"]:
                first = time.perf_counter() - start
            if chunk.get("usage"):
                used = chunk["usage"]["completion_tokens"]
    out.append((first, used))


class Peer:
    """llama.cpp's server with so many slots. program: its llama-server."""

    def __init__(self, program, model, slots, context=512):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        threads = str(len(os.sched_getaffinity(0)))
        command = [program, "-m", model, "-np", str(slots), "-c", str(context * slots), "-t", threads, "--port", port]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{program} did not start")
            time.sleep(0.1)

    def stop(self):
        """Ends it."""
        self.process.kill()
        self.process.wait()


def memory(pid):
    """Peak resident memory in GB of 2^30."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 2**20


def measure(server, model, streams, tokens):
    """One row: streams at once, each of so many tokens."""
    out, start = [], time.perf_counter()
    people = [threading.Thread(target=stream, args=(server.url, model, tokens, i, out)) for i in range(streams)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    seconds = time.perf_counter() - start
    firsts = sorted(first for first, _ in out)
    return {"streams": streams, "tokens_per_second": round(sum(used for _, used in out) / seconds, 1),
            "first_token_median_s": round(firsts[len(firsts) // 2], 3), "first_token_worst_s": round(firsts[-1], 3),
            "peak_gb": round(memory(server.process.pid), 2)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--compute", default="float32")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--peer", help="llama.cpp's llama-server, over the GGUF file --model")
    o = parser.parse_args()
    if o.peer:
        server = Peer(o.peer, o.model, max(o.streams))
    else:
        server = Serve("--compute", o.compute, "--name", "m", model=o.model)
    try:
        measure(server, "m", 1, 4)
        for streams in o.streams:
            row = measure(server, "m", streams, o.tokens)
            print(json.dumps({"server": "llama.cpp" if o.peer else f"jpo, {o.compute}", **row}), flush=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
