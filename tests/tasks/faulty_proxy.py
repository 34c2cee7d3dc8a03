"""An HTTP proxy on loopback in front of an S3 server that fails a tenth of the calls, each time in another way."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["500", "503", "reset", "lost answer", "half answer", "stall"]
FAULTS: tuple[Fault, ...] = ("500", "503", "reset", "lost answer", "half answer", "stall")


@dataclass
class FaultyProxy:
    """What the proxy does, and what it did.

    Attributes
    ----------
    endpoint_url : str
    every : int
        Every so manieth call fails; 0: none does.
    stall_seconds : float
        How long a stalled call is held before its connection is closed.
    only : tuple of str and str, optional
        Method and end of the path of the calls that fail by `only_fault`; all others succeed.
    only_times : int
        How many of them fail before the rest succeeds.
    calls : int
    faults : Counter
        How often each fault happened.
    stalled : threading.Event
        Set as soon as a call stalls.
    """

    endpoint_url: str = ""
    every: int = 10
    stall_seconds: float = 2.0
    only: tuple[str, str] | None = None
    only_fault: Fault = "stall"
    only_times: int = 1_000_000
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    stalled: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Count a call and say how it is to fail."""
        with self.lock:
            self.calls += 1
            fault: Fault | None = None
            if self.only is not None:
                chosen = method == self.only[0] and urlsplit(path).path.endswith(self.only[1])
                if chosen and self.faults.total() < self.only_times:
                    fault = self.only_fault
            elif self.every and self.calls % self.every == 0:
                fault = FAULTS[self.calls // self.every % len(FAULTS)]
            if fault is not None:
                self.faults[fault] += 1
            return fault


@contextmanager
def faulty_proxy(endpoint_url: str, **settings: object) -> Iterator[FaultyProxy]:
    """Run a proxy in front of `endpoint_url` in a thread; `settings` are fields of `FaultyProxy`."""
    proxy = FaultyProxy(**settings)  # type: ignore[arg-type]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy, urlsplit(endpoint_url).netloc))
    server.daemon_threads = True
    proxy.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(proxy: FaultyProxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.next_fault(self.command, self.path)
            if fault in ("500", "503"):
                self.refuse(fault)
            elif fault == "reset":
                self.close_connection = True
            elif fault == "stall":
                proxy.stalled.set()
                time.sleep(proxy.stall_seconds)
                self.close_connection = True
            else:
                self.answer(body, fault)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

        def refuse(self, status: str) -> None:
            code = {"500": "InternalError", "503": "SlowDown"}[status]
            xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
            self.send_response(int(status))
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(xml)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(xml)

        def answer(self, body: bytes, fault: Fault | None) -> None:
            connection = http.client.HTTPConnection(upstream, timeout=60)
            # Headers go through untouched: the signature covers them, the host's name among them.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            if fault == "lost answer":
                self.close_connection = True
                return
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if fault == "half answer":
                data = data[: len(data) // 2]
                self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    return Handler
