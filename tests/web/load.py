"""Many people clicking at once, against a real server: `python -m tests.web.load [--clients 50] [--seconds 60]` prints
the times of their clicks; `--kills 20` kills the server (SIGKILL) that many times meanwhile, starts it again, and
checks that no acknowledged verdict is lost and none is doubled. tests/web/test_load.py runs a few seconds of both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import httpx2  # noqa: E402
from web.servers import Process  # noqa: E402


class Annotate(Process):
    """`jpo annotate` over FOLDER/in.jsonl."""

    def __init__(self, folder, port):
        arguments = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"), "--port", str(port)]
        super().__init__("annotate", *arguments, last="verdicts:")


class Clicker(threading.Thread):
    """One person who clicks as fast as the page lets him (or after `pause` seconds in the mean), and sends again what
    was not acknowledged, as the page's script does. Pauses are random, since equal ones keep people in step; with
    `together` they are equal, so that all click at once and the last one waits for all others."""

    def __init__(self, url, name, end, pause, together=False):
        super().__init__(daemon=True)
        self.url, self.person, self.end = url, name, end
        self.pauses = (pause, pause) if together else (0.5 * pause, 1.5 * pause)
        self.acknowledged, self.times = {}, []  # showing -> verdict

    def run(self):
        with httpx2.Client(base_url=self.url, follow_redirects=True, timeout=20) as http:
            page = self.again(lambda: http.post("/enter", data={"name": self.person, "passcode": "secret", "key": ""}))
            csrf = re.search(r'data-csrf="(\w+)"', page.text)[1]
            html = page.text
            while time.monotonic() < self.end() and (found := re.search(r'data-showing="(\d+)"', html)):
                body = {"showing": int(found[1]), "verdict": random.choice(["left", "right", "equal"]), "seconds": 1}
                start = time.monotonic()
                reply = self.again(lambda body=body: http.post("/verdict", json=body, headers={"x-csrf-token": csrf}))
                self.times.append(time.monotonic() - start)
                self.acknowledged.setdefault(body["showing"], body["verdict"])
                html = reply.json()["html"]
                time.sleep(random.uniform(*self.pauses))

    def again(self, ask):
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                reply = ask()
                if reply.status_code == 200:
                    return reply
                assert reply.status_code in (429, 503), reply.text
            time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(folder, clients, seconds, kills, pause, items=5000, together=False):
    """(times of all clicks, sorted; verdicts acknowledged; kills). AssertionError where one is lost or doubled."""
    with open(folder / "in.jsonl", "w", encoding="utf-8") as file:
        for i in range(items):
            file.write(json.dumps({"instruction": f"I {i}", "response_0": f"a {i}", "response_1": f"b {i}"}) + "\n")
    port = free_port()
    server = Annotate(folder, port)
    end = float("inf")
    people = [Clicker(f"http://127.0.0.1:{port}", f"p{i}", lambda: end, pause, together) for i in range(clients)]
    for person in people:
        person.start()
    while not all(person.acknowledged for person in people):  # all have entered
        assert all(person.is_alive() or person.acknowledged for person in people)
        time.sleep(0.02)
    entered = [len(person.times) for person in people]
    end = time.monotonic() + seconds
    for _ in range(kills):
        time.sleep(random.uniform(0.2, 0.8) * seconds / (kills + 1))
        server.stop(signal.SIGKILL)
        start = time.monotonic()
        server = Annotate(folder, port)
        end += time.monotonic() - start
    for person in people:
        person.join(seconds + 120)
        assert not person.is_alive()
    server.stop(signal.SIGINT)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    keys = [(row["annotator"], row["instruction"]) for row in rows]
    assert len(set(keys)) == len(keys), "a verdict is doubled"
    assert len({row["instruction"] for row in rows}) == len(rows), "an item went to two people"
    count = sum(len(person.acknowledged) for person in people)
    assert count == len(rows), f"{count} were acknowledged, {len(rows)} are written"
    times = [t for person, first in zip(people, entered, strict=True) for t in person.times[first:]]
    return sorted(times), count, kills


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between a person's clicks, in the mean")
    parser.add_argument("--together", action="store_true", help="equal pauses: everybody clicks at the same moments")
    parser.add_argument("--items", type=int, default=5000)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times, count, kills = run(Path(folder), o.clients, o.seconds, o.kills, o.pause, o.items, o.together)
    shown = {
        name: round(1000 * times[int(q * (len(times) - 1))], 1) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1))
    }
    print(
        f"{o.clients} clients, {count} verdicts acknowledged, all written once, {kills} kills; a click in ms: {shown}"
    )


if __name__ == "__main__":
    main()
