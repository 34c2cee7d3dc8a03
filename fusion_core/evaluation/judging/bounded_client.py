"""An HTTP client whose answers are bounded in size and time, whatever the server sends."""

from __future__ import annotations

import time
from typing import Any

import openai

LARGEST_REPLY_BYTES = 32 << 20
# They describe the body as it was on its way.
OF_THE_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")


class ReplyTooLargeError(Exception):
    """A reply is longer than any chat completion."""


class ReplyTooLateError(Exception):
    """A reply has begun and does not end."""


class BoundedClient(openai.DefaultHttpxClient):
    """Reads at most `LARGEST_REPLY_BYTES` of an answer, counted after decompression, and no longer than the time-out.

    The HTTP library's own time-out counts from one piece to the next, so that a server could send a byte a minute for
    ever, and a compressed body of a few kilobytes could stand for one that fits no memory.

    Parameters
    ----------
    timeout_seconds : float
        From the answer's head to its end.
    """

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(timeout=timeout_seconds)
        self._seconds = timeout_seconds

    def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
        """Send a request and return the whole answer.

        Raises
        ------
        ReplyTooLargeError, ReplyTooLateError
        """
        answer = super().send(request, stream=True, **settings)
        deadline = time.monotonic() + self._seconds
        body = bytearray()
        try:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > LARGEST_REPLY_BYTES:
                    raise ReplyTooLargeError(f"a reply of more than {LARGEST_REPLY_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise ReplyTooLateError(f"the reply did not end within {self._seconds:g} s")
        finally:
            answer.close()
        headers = [(name, value) for name, value in answer.headers.multi_items() if name not in OF_THE_TRANSFER]
        # Of the same library that the OpenAI client has chosen.
        return type(answer)(answer.status_code, headers=headers, content=bytes(body), request=request)
