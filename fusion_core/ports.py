"""Ports of this machine's loopback for servers that are about to start."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
# Below what systems hand to clients by chance (Linux from 32,768, others from 49,152): such a port may be taken
# between its choice and the server's start, and by anything while the server is stopped.
SERVER_PORTS = range(20_000, 32_768)


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on, chosen at random so that two who choose rarely meet."""
    found: list[int] = []
    for port in random.SystemRandom().sample(SERVER_PORTS, len(SERVER_PORTS)):
        if len(found) == count:
            break
        if is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Say whether nobody listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
