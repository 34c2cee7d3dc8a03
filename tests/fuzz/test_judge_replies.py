"""What a judge replies, as text and as bytes on the wire."""

from __future__ import annotations

import gzip
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st

from fusion_core.errors import EndpointError
from fusion_core.evaluation.judging import ChatClient, Endpoint, bounded_client
from fusion_core.evaluation.judging.ratings import read_rating, read_verdict
from tests.fuzz.fuzzing import counts, fuzz, fuzz_values, json_bytes, mutated_bytes, mutated_value, nasty, time_limit


@counts
def test_any_text_as_a_verdict(count: int) -> None:
    pieces = st.sampled_from(
        ["[[", "]]", "[", "]", "7", "10", "11", ".", "5.5", "A", "B", "C", " ", "\n", "٣", "²", "-"]
    )

    def read(text: str) -> None:
        rating = read_rating(text)
        assert rating is None or 1 <= rating <= 10
        assert read_verdict(text) in (None, "A", "B", "tie")

    fuzz_values(count, st.lists(pieces | st.text(max_size=5), max_size=12).map("".join), read)


@pytest.mark.parametrize(
    "text", ["[[" + "1" * 1_000_000, "[" * 1_000_000, "[[" + "0" * 10_000 + "5]]", "[1." * 300_000]
)
def test_long_replies_take_no_quadratic_time(text: str) -> None:
    with time_limit(5):
        read_rating(text)
        read_verdict(text)


class RawServer:
    """Sends whatever bytes it is told to whoever connects."""

    def __init__(self) -> None:
        self.answer = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            # Both are closed, else the client would wait for the rest of half an answer.
            with connection, connection.makefile("rb") as request, suppress(OSError):
                connection.settimeout(2)
                length = 0
                while (line := request.readline()).strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                # What is left unread would reset the connection, and the answer with it.
                request.read(length)
                connection.sendall(self.answer)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def raw_server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def http_answer(status: int, body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n%s" % (
        status,
        len(body),
        headers,
        body,
    )


COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "[[7]]"},
            "finish_reason": "stop",
            "logprobs": {
                "content": [{"token": "m", "logprob": -0.1, "top_logprobs": [{"token": "m", "logprob": -0.1}]}]
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


@counts
def test_any_answer_of_a_judges_server(count: int, raw_server: RawServer, tmp_path: Path) -> None:
    client = ChatClient(Endpoint("m", raw_server.url, timeout_seconds=5.0, retries=0, first_wait_seconds=0.01))

    def make(rng: random.Random) -> bytes:
        body = mutated_value(rng, COMPLETION) if rng.random() < 0.8 else nasty(rng)
        text = json_bytes(body)
        status = rng.choice((200, 200, 200, 200, 400, 401, 404, 429, 500, 204, 302, 999))
        extra = rng.choice((b"", b"", b"Content-Encoding: gzip\r\n", b"Retry-After: 1e999\r\n", b"Location: /x\r\n"))
        whole = http_answer(status, text, extra)
        return mutated_bytes(rng, whole) if rng.random() < 0.3 else whole

    def read(answer: bytes) -> None:
        raw_server.answer = answer
        reply = client.complete([{"role": "user", "content": "x"}], temperature=0.0, max_tokens=5, top_logprobs=5)
        assert isinstance(reply.text, str) and reply.prompt_tokens >= 0
        assert all(isinstance(value, float) for value in reply.first_token.values())
        read_rating(reply.text)

    fuzz(count, make, read, tmp_path)


def test_a_reply_without_an_end_is_refused(raw_server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_client, "LARGEST_REPLY_BYTES", 1 << 20)
    client = ChatClient(Endpoint("m", raw_server.url, timeout_seconds=20.0, retries=0))
    for body, headers in ((b"a" * (2 << 20), b""), (gzip.compress(b"a" * (64 << 20)), b"Content-Encoding: gzip\r\n")):
        raw_server.answer = http_answer(200, body, headers)
        with pytest.raises(EndpointError, match="more than 1 MiB"):
            client.complete([{"role": "user", "content": "x"}], temperature=0.0, max_tokens=5)
