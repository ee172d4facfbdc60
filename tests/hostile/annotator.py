"""A person before `jpo annotate`, in a thread of the command's own process: enters, prefers the left side until nothing
is left or the server fails, then ends it as Ctrl-C does. What was acknowledged is noted outside the folder of
faults."""

import http.cookiejar
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def opened(ask, url, data=None, headers=None):
    """The reply's text; waits until the server listens."""
    for _ in range(600):
        try:
            with ask.open(urllib.request.Request(url, data, headers or {}), timeout=60) as reply:
                return reply.read().decode()
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise TimeoutError(url)


def work(url, noted):
    ask = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    opened(ask, url)
    html = opened(
        ask, f"{url}/enter", urllib.parse.urlencode({"name": "anna", "passcode": "secret", "key": ""}).encode()
    )
    token = re.search(r'data-csrf="(\w+)"', html)[1]
    while found := re.search(r'data-showing="(\d+)"', html):
        shown = re.search(r"Say \d+", html)[0]
        body = json.dumps({"showing": int(found[1]), "verdict": "left", "seconds": 1}).encode()
        reply = opened(ask, f"{url}/verdict", body, {"x-csrf-token": token, "content-type": "application/json"})
        with open(noted, "a", encoding="utf-8") as file:
            file.write(shown + "\n")
        html = json.loads(reply)["html"]


def start(port, noted):
    """The thread; the process gets SIGINT when the work is done or cannot go on."""

    def run():
        try:
            work(f"http://127.0.0.1:{port}", noted)
        except (OSError, ValueError, TypeError) as error:
            print(f"the annotator stops: {error}", flush=True)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=run, daemon=True).start()
