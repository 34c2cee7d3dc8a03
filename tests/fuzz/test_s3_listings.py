"""Listings that an S3 server answers with."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from tasks.store.interface import Store, is_key
from tasks.store.s3 import S3Store
from tests.fuzz.fuzzing import counts, fuzz, mutated_bytes
from tests.fuzz.test_store_contents import KEYS


class XmlServer:
    """An S3 server that answers every request with the same bytes."""

    def __init__(self) -> None:
        outer = self
        self.status, self.body = 200, b""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one packet: the second of two would wait for the client to say that it has the first.
            wbufsize = 1 << 16

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            do_GET = do_PUT = do_POST = answer  # noqa: N815

            def log_message(self, format: str, *given: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[XmlServer, Store]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = XmlServer()
    yield server, S3Store("bucket", "prefix", endpoint_url=server.url, max_attempts=1)
    server.close()


MOMENTS = (datetime.now(UTC).isoformat(), "2020-01-01T00:00:00.000Z", "never", "", "99999-01-01", "1e999")
SIZES = ("1", "0", "-1", "9" * 30, "x", "", "1.5")
ENDS = (
    *("<IsTruncated>false</IsTruncated>", "", "<IsTruncated>true</IsTruncated>", "<KeyCount>x</KeyCount>"),
    "<IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken>",
)
BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


def listing_xml(rng: random.Random) -> bytes:
    """Write an answer to ListObjectsV2, more or less right."""
    items = []
    for _ in range(rng.randrange(5)):
        key = rng.choice(("prefix/", "prefix/", "", "other/")) + rng.choice(KEYS)
        when, size = (rng.choice(values if rng.random() < 0.3 else values[:1]) for values in (MOMENTS, SIZES))
        fields = [
            f"<Key>{escape(key.encode('utf-8', 'replace').decode())}</Key>",
            f"<LastModified>{when}</LastModified>",
            f"<Size>{size}</Size>",
        ]
        rng.shuffle(fields)
        items.append(f"<Contents>{''.join(fields[: rng.choice((3, 3, 3, 2, 1))])}</Contents>")
    head = BOMB if rng.random() < 0.05 else ""
    body = f"<ListBucketResult>{rng.choice(ENDS)}{''.join(items)}</ListBucketResult>"
    text = f"<?xml version='1.0'?>{head}{body}".encode()
    return mutated_bytes(rng, text) if rng.random() < 0.3 else text


@counts
def test_listings_of_an_s3_server(count: int, s3: tuple[XmlServer, Store], tmp_path: Path) -> None:
    server, store = s3

    def make(rng: random.Random) -> tuple[int, bytes]:
        return rng.choice((200, 200, 200, 200, 403, 404)), listing_xml(rng)

    def read(made: tuple[int, bytes]) -> None:
        server.status, server.body = made
        for info in store.list("locks/"):
            assert is_key(info.key) and info.key.startswith("locks/")
            assert isinstance(info.size, int) and isinstance(info.modified, float)
        list(store.list())

    fuzz(count, make, read, tmp_path)
