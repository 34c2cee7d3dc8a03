"""A server that is busy is waited for, one that is away is not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fusion_core.errors import TrackingError
from tasks import servers
from tasks.servers import check_mlflow
from tasks.settings import Settings

DELAY_SECONDS = 0.6


@pytest.fixture
def busy_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that answers each request only after some time; connecting to it succeeds at once."""
    monkeypatch.setattr(servers, "CONNECT_SECONDS", DELAY_SECONDS / 3)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    time.sleep(DELAY_SECONDS)
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_busy_server_is_waited_for(busy_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", busy_server)
    check_mlflow(Settings())
    monkeypatch.setattr(servers, "ANSWER_SECONDS", DELAY_SECONDS / 3)
    with pytest.raises(TrackingError, match="MLflow does not answer"):
        check_mlflow(Settings())


def test_a_server_that_is_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(TrackingError, match="MLflow does not answer"):
        check_mlflow(Settings())
