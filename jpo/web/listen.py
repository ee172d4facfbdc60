"""Listening for people: one address, one printed link, one clean end, for both rooms. Knows uvicorn; never pages."""

from __future__ import annotations

import importlib.util
import signal
import socket
from typing import Any

from jpo.errors import JpoError, MissingExtra

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def need_web(command: str) -> None:
    """MissingExtra where a package of the extra is not installed."""
    for package in ("starlette", "uvicorn", "markdown_it", "multipart"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"{command} needs {package}: pip install 'jpo[web]'")


def loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    return host in LOOPBACK


def hosts(host: str) -> list[str]:
    """Host headers that are answered: on loopback its own names alone (DNS rebinding)."""
    return [*LOOPBACK, "[::1]"] if loopback(host) else ["*"]


def elsewhere(host: str) -> str:
    """Where `host` stands for all of this machine's addresses: a line that names the one to pass on; else nothing."""
    family = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}.get(host)
    if family is None:
        return ""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:  # chooses the way out, sends nothing
            probe.connect(("192.0.2.1" if family == socket.AF_INET else "2001:db8::1", 9))
        except OSError:  # no network
            return ""
        return f"other machines: {probe.getsockname()[0]} in the place of {host}"


def check_prefix(prefix: str) -> None:
    """JpoError unless it is empty or a path such as /annotate."""
    if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
        raise JpoError(f"--prefix: expected a path such as /annotate, got {prefix!r}")


class Listener:
    """A bound socket for one application; `url` is what people open. JpoError where the address is not to be had."""

    def __init__(self, app: Any, host: str, port: int, prefix: str = "", *, patience: int = 3, connections: int = 512):
        import uvicorn

        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", server_header=False, timeout_graceful_shutdown=patience,
            proxy_headers=False, limit_concurrency=connections, access_log=False,  # addresses may carry a key
        )  # fmt: skip
        self.socket = _bound(host, port)
        self.signal: int | None = None  # the first that asked for the end

        class Server(uvicorn.Server):
            """Ends within the patience, however often it is asked to: an end cut short would be shown as a fault."""

            def handle_exit(server, sig: int, frame: Any) -> None:
                self.signal = self.signal or sig
                server.should_exit = True

        self.server = Server(config)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.socket.getsockname()[1]}{prefix}"

    def end(self) -> None:
        """Lets `run` come back as soon as open requests are answered."""
        self.server.should_exit = True

    def run(self) -> None:
        """Serves until Ctrl-C or SIGTERM, which then take their usual course: once, and outside the event loop."""
        try:
            self.server.run(sockets=[self.socket])
        finally:
            self.socket.close()
        if self.signal is not None:
            signal.raise_signal(self.signal)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # who comes before the application is up waits instead of being refused
    except (OSError, OverflowError) as error:
        bound.close()
        raise JpoError(f"--host {host} --port {port}: {error}; choose another port, or 0 for a free one") from None
    bound.set_inheritable(True)
    return bound
