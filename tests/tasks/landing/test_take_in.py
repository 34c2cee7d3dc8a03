"""Whose fault a failure is: a source answers for its own, not for the judge that was to look at it."""

from __future__ import annotations

import socket

import pytest

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.judging import ChatClient, Endpoint, Refusal
from tasks.landing.take_in import is_fault_of_source
from tests.fusion_core.evaluation.chat_server import chat_server


def failure_of_judge(url: str) -> EvaluationError:
    """What a judge at an address raises."""
    client = ChatClient(Endpoint("judge", url, "TEST_JUDGE_KEY", 5.0, retries=1, first_wait_seconds=0.01))
    with pytest.raises(EvaluationError) as caught:
        client.complete([{"role": "user", "content": "how good is this"}], temperature=0.0, max_tokens=8)
    return caught.value


@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_judge_that_is_down_busy_or_without_a_key_puts_no_source_in_quarantine(status: int) -> None:
    with chat_server(lambda body, number: status) as server:
        error = failure_of_judge(server.url)
    assert not is_fault_of_source(error)
    outer = EvaluationError("Model 'a' cannot be judged.")
    outer.__cause__ = error
    assert not is_fault_of_source(outer)


def test_a_judge_that_nobody_serves_puts_no_source_in_quarantine() -> None:
    with socket.socket() as bound:  # bound and not listening: the port is closed, and nobody else gets it
        bound.bind(("127.0.0.1", 0))
        assert not is_fault_of_source(failure_of_judge(f"http://127.0.0.1:{bound.getsockname()[1]}/v1"))


def test_scores_that_cannot_be_used_are_the_sources_fault() -> None:
    assert is_fault_of_source(EvaluationError("worse than the pivot"))
    with chat_server(lambda body, number: 400) as server:
        error = failure_of_judge(server.url)
    assert isinstance(error, Refusal) and is_fault_of_source(error)
