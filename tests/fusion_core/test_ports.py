"""Ports for servers: free ones, and none that a client may be given by chance."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fusion_core.ports import LOOPBACK, SERVER_PORTS, free_ports, is_free


def test_ports_differ_and_nobody_listens_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, free_ports(1)[0]))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        monkeypatch.setattr("fusion_core.ports.SERVER_PORTS", range(port - 20, port + 20))
        found = free_ports(20)
    assert len(set(found)) == 20
    assert port not in found
    assert is_free(port)


def test_no_client_is_given_a_servers_port() -> None:
    settings = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not settings.exists():
        pytest.skip("the system does not say which ports it hands to clients")
    assert max(SERVER_PORTS) < int(settings.read_text().split()[0])
