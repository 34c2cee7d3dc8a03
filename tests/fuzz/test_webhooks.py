"""Deliveries to the webhook receiver, signed and not, and clients that take their time."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from fusion_core.config import NAME_PATTERN
from fusion_core.errors import FusionError
from tasks.landing import head_timeout
from tasks.landing.head_timeout import HeadTimeoutProtocol
from tasks.landing.webhook_deliveries import Deliveries
from tasks.landing.webhook_receiver import (
    DELIVERY_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    Receiver,
    make_application,
    sign,
)
from tests.fuzz.fuzzing import counts, fuzz, json_bytes, mutated_bytes, mutated_value, nasty, nasty_text

SECRET = "a-secret-of-some-length"
TAGS = {"fuseline.source": "true", "fuseline.recipe": "small"}
PAYLOAD = {
    "entity": "model_version",
    "action": "created",
    "timestamp": "2026-01-01T00:00:00Z",
    "data": {"name": "a-model", "version": "3", "source": "s3://x/y", "tags": TAGS},
}
# Half a request has no answer, and is given up after as long as a whole one's takes several times.
ANSWER_SECONDS = 0.03
STATUSES = {200, 202, 400, 401, 503}


def receiver(folder: Path, announced: list[tuple[str, str, str]]) -> Receiver:
    """A receiver that notes what it announces."""

    def announce(recipe: str, name: str, reference: str) -> None:
        # As Prefect's client does.
        json.dumps([recipe, name, reference]).encode("utf-8")
        assert NAME_PATTERN.match(recipe) and f"{name}{reference}".isprintable()
        announced.append((recipe, name, reference))

    return Receiver(SECRET, Deliveries(folder / "deliveries.db", 1200), announce, lambda name, version: TAGS)


@counts
def test_deliveries(count: int, tmp_path: Path) -> None:
    announced: list[tuple[str, str, str]] = []
    receives = receiver(tmp_path, announced)

    def make(rng: random.Random) -> tuple[dict[str, str], bytes]:
        payload = mutated_value(rng, PAYLOAD)
        if rng.random() < 0.3 and isinstance(payload, dict) and isinstance(payload.get("data"), dict):
            payload["data"][rng.choice(("name", "version", "tags"))] = nasty(rng)
        body = json_bytes(payload)
        if rng.random() < 0.2:
            body = mutated_bytes(rng, body)
        delivery, now = f"d{rng.random()}", f"{time.time():.0f}"
        headers = {
            DELIVERY_HEADER: delivery,
            TIMESTAMP_HEADER: now,
            SIGNATURE_HEADER: sign(SECRET, delivery, now, body),
        }
        if rng.random() < 0.3:
            headers[rng.choice(list(headers))] = nasty_text(rng)[:10_000]
        return headers, body

    def read(made: tuple[dict[str, str], bytes]) -> None:
        before = len(announced)
        status, said = receives.handle(*made)
        assert status in STATUSES and said
        assert len(announced) == before + (status == 202)
        if status != 202:
            raise FusionError("it had no effect.")

    fuzz(count, make, read, tmp_path)


class Server:
    """The receiver in a thread, as `fuseline receiver` serves it."""

    def __init__(self, application: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        config = uvicorn.Config(application, log_level="critical", http=HeadTimeoutProtocol, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.address[1]}"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head_timeout, "HEAD_SECONDS", 0.6)
    made = Server(make_application(receiver(tmp_path, [])))
    yield made
    made.close()


def seconds_until_closed(connection: socket.socket, pieces: list[bytes]) -> float:
    """Send a piece every fifth of a second; return when the server closes the connection."""
    began = time.monotonic()
    connection.settimeout(0.2)
    while time.monotonic() < began + 8:
        try:
            if pieces:
                connection.sendall(pieces.pop(0))
            if connection.recv(4096) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


def test_a_client_that_never_ends_its_request_is_let_go(server: Server) -> None:
    slow = b"POST /mlflow HTTP/1.1\r\nHost: a\r\nX-Slow: "
    for pieces in ([], [slow, *[b"a"] * 100], [b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", slow, *[b"a"] * 100]):
        with socket.create_connection(server.address) as connection:
            assert seconds_until_closed(connection, list(pieces)) < 6
    # Others are served meanwhile, and one connection may carry several requests.
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{server.url}/health").status_code == 200
            time.sleep(0.3)


@counts
def test_any_bytes_as_a_request(count: int, server: Server, tmp_path: Path) -> None:
    valid = b"POST /mlflow HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"

    def read(content: bytes) -> None:
        with socket.create_connection(server.address, timeout=ANSWER_SECONDS) as connection:
            connection.sendall(content)
            try:
                answer = connection.recv(65536)
            except OSError:
                answer = b""
        status = answer.split(b" ")[1] if answer.startswith(b"HTTP/1.1 ") else b"none"
        assert status in (b"none", b"401", b"400", b"404", b"405", b"413")
        if status != b"401":
            raise FusionError("it was no request of a webhook.")

    fuzz(count, lambda rng: mutated_bytes(rng, valid), read, tmp_path)
    assert httpx.get(f"{server.url}/health").status_code == 200
