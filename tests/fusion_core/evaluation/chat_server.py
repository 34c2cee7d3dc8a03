"""A real HTTP server that speaks chat completions and misbehaves as a script says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What an answer may be: a text, a status, or one of the faults below.
HALF_BODY, HALF_JSON, NO_CHOICES, HANG = "<half body>", "<half JSON>", "<no choices>", "<hang>"
HANG_SECONDS = 1.5

Answer = str | int | tuple[int, dict[str, Any], dict[str, str]]


@dataclass
class ChatServer:
    """What the server was asked, and what it answers: ``answer(request body, number of the request)``."""

    answer: Callable[[dict[str, Any], int], Answer]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[ChatServer]:
    """Run a server on a free port of the loopback interface."""
    state = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.keys.append(self.headers.get("Authorization", ""))
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                self._send(state.answer(body, number), body)
            finally:
                with state.lock:
                    state.at_once -= 1

        def _send(self, answer: Answer, body: dict[str, Any]) -> None:
            headers: dict[str, str] = {}
            status = 200
            if answer == HANG:
                time.sleep(HANG_SECONDS)
                answer = "too late [[1]]"
            if isinstance(answer, tuple):
                status, content, headers = answer
                payload = json.dumps(content).encode()
            elif isinstance(answer, int):
                status, payload = answer, json.dumps({"error": {"message": f"status {answer}"}}).encode()
            elif answer == NO_CHOICES:
                payload = json.dumps({"id": "1", "object": "chat.completion", "choices": []}).encode()
            else:
                payload = json.dumps(completion(answer, body)).encode()
            whole = len(payload)
            if answer in (HALF_BODY, HALF_JSON):
                payload = payload[: whole // 2]
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            # A half body breaks off before its length; half a JSON document is whole as far as HTTP can tell.
            self.send_header("Content-Length", str(len(payload) if answer == HALF_JSON else whole))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(payload)
            if answer == HALF_BODY:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str, body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion as OpenAI's API returns it; a "token" is a word."""
    asked = sum(len(message["content"].split()) for message in body["messages"])
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": len(text.split()),
            "total_tokens": asked + len(text.split()),
        },
    }
