"""What every message to the user keeps to."""

from __future__ import annotations

import pytest


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    """Return an error's message, which is one sentence without a secret or a traceback."""
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and "secret" not in message and "Traceback" not in message
    return message
