"""A loopback OpenAI-compatible server that judges by length and can misbehave on demand; keeps a log of requests."""

import contextlib
import gzip
import json
import re
import threading
import time
import zlib
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def longest(prompt):
    """ "A" or "B": the longer response; "tie" where equal."""
    mark = re.search(r"==[0-9a-f]{16}==", prompt)[0]
    parts = prompt.split(mark)
    a, b = (
        next(parts[n + 1] for n, part in enumerate(parts) if part.endswith(f"Response {letter}:\n")) for letter in "AB"
    )
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.bodies.append(body)
        for name, message in self.server.refuses.items():
            if name in body:
                status, text = self.server.refusal or (
                    400,
                    json.dumps({"error": {"message": message, "param": None}}),
                )
                return self.send(status, text.encode())
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if fault is None:
                arrived = time.monotonic()
                if self.server.delay:
                    time.sleep(self.server.delay)
                self.answer(self.server.judge(prompt))
                with self.server.lock:
                    self.server.log.append(prompt)
                    self.server.times.append(arrived)
            else:
                getattr(self, f"fault_{fault[0]}")(*fault[1:])

    def send(self, status, data, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, text):
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        reply = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
        headers = [("Content-Type", "application/json"), *self.server.headers]
        self.send(200, json.dumps(reply).encode(), headers)

    def fault_status(self, status, after=None):
        if after == "date":
            after = formatdate(time.time() + 0.2, usegmt=True)
        self.send(status, b"{}", [("Retry-After", str(after))] if after is not None else [])

    def fault_reset(self, middle):
        if middle:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
        self.close_connection = True
        self.connection.close()

    def fault_hang(self):
        self.server.closing.wait(60)

    def fault_endless(self, status=200):
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(4000):
            self.wfile.write(b"2000\r\n" + b" " * 0x2000 + b"\r\n")

    def fault_body(self, data):
        self.send(200, data, [("Content-Type", "text/html" if data.startswith(b"<") else "application/json")])

    def fault_text(self, text):
        self.answer(text)

    def fault_bomb(self, status):
        data = gzip.compress(bytes(1 << 28))
        self.send(status, data, [("Content-Encoding", "gzip")])

    def fault_nested_bomb(self, status):
        data = gzip.compress(gzip.compress(bytes(1 << 26)))
        self.send(status, data, [("Content-Encoding", "gzip, gzip")])

    def fault_gzip(self, text):
        """An ordinary reply, compressed."""
        reply = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        self.send(200, gzip.compress(json.dumps(reply).encode()), [("Content-Encoding", "gzip")])

    def fault_raw_deflate(self):
        data = zlib.compress(bytes(1 << 27))
        self.send(200, data, [("Content-Encoding", "deflate")])

    def fault_redirect(self, status, where):
        self.send(status, b"", [("Location", where)])

    def fault_echo_pieces(self):
        """The key with blanks between its parts."""
        key = self.headers["Authorization"].split()[-1]
        self.answer(" | ".join(key[at : at + 4] for at in range(0, len(key), 4)))

    def fault_echo_verdict(self):
        """A verdict that can be read, and the key in its explanation."""
        self.answer(f"A. It says {self.headers['Authorization']}")

    def fault_usage(self, tokens):
        reply = {"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": 1, "completion_tokens": tokens}}
        self.send(200, json.dumps(reply).encode())

    def fault_echo(self):
        """The request's own key as the reply, as debugging proxies do."""
        self.answer(f"no: {self.headers['Authorization']}")

    def fault_headers(self, status, headers):
        self.send(status, b"{}", headers)


@contextlib.contextmanager
def serve(faults=(), delay=0.0, headers=(), refuses=None, judge=longest, refusal=None):
    """(base_url, server): faults are used up by the first requests, one each. refuses: parameter -> the error
    message; refusal: (status, body) in its place."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.lock, server.faults, server.log, server.delay = threading.Lock(), list(faults), [], delay
    server.headers, server.times, server.bodies = list(headers), [], []
    server.refusal, server.closing = refusal, threading.Event()
    server.refuses, server.judge = dict(refuses or {}), judge
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
