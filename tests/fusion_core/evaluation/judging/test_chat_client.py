"""The chat client against a real HTTP server that fails in every way endpoints fail."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from fusion_core.errors import EndpointError
from fusion_core.evaluation.generation import Sampling
from fusion_core.evaluation.generation_endpoint import EndpointGenerator
from fusion_core.evaluation.judging import ChatClient, Endpoint, Refusal
from fusion_core.evaluation.judging.chat_client import _first_token
from tests.fusion_core.evaluation.chat_server import HALF_BODY, HALF_JSON, HANG, NO_CHOICES, chat_server

MESSAGES = [{"role": "system", "content": "be fair"}, {"role": "user", "content": "how good is this"}]


def client_of(url: str, **settings) -> ChatClient:
    given = {"retries": 3, "first_wait_seconds": 0.01, "timeout_seconds": 5.0} | settings
    return ChatClient(Endpoint("judge", url, "TEST_JUDGE_KEY", **given))


def complete(client: ChatClient, **settings):
    return client.complete(MESSAGES, **({"temperature": 0.0, "max_tokens": 64} | settings))


@pytest.mark.parametrize("fault", [429, 500, 503, HALF_BODY, HALF_JSON, NO_CHOICES])
def test_passing_faults_are_outlived(fault) -> None:
    with chat_server(lambda body, number: fault if number < 2 else "fine [[7]]") as server:
        client = client_of(server.url)
        reply = complete(client)
    assert (reply.text, reply.finished) == ("fine [[7]]", True)
    assert (reply.prompt_tokens, reply.completion_tokens) == (6, 2)
    assert len(server.requests) == 3 and client.retries == 2


def test_a_request_that_takes_too_long_is_sent_again() -> None:
    with chat_server(lambda body, number: HANG if number == 0 else "in time") as server:
        assert complete(client_of(server.url, timeout_seconds=0.3)).text == "in time"
    assert len(server.requests) == 2


def test_the_endpoint_says_how_long_to_wait() -> None:
    waits: list[float] = []
    busy = (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"})
    with chat_server(lambda body, number: busy if number == 0 else "now") as server:
        client = client_of(server.url, first_wait_seconds=50.0)
        original = client._wait
        client._wait = lambda state: waits.append(original(state)) or waits[-1]  # type: ignore[method-assign]
        assert complete(client).text == "now"
    assert waits == [0.05]


def test_what_never_passes_ends_after_the_retries_with_host_and_model_named() -> None:
    with chat_server(lambda body, number: 500) as server, pytest.raises(EndpointError) as caught:
        complete(client_of(server.url))
    assert len(server.requests) == 4
    assert (
        "model 'judge'" in str(caught.value) and "status 500" in str(caught.value) and "127.0.0.1" in str(caught.value)
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_ends_at_once_and_is_not_repeated_in_the_message(status, monkeypatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-very-secret")
    said = {"error": {"message": "Incorrect API key provided: sk-very-secret"}}
    with chat_server(lambda body, number: (status, said, {})) as server, pytest.raises(EndpointError) as caught:
        complete(client_of(server.url))
    assert server.keys == ["Bearer sk-very-secret"]
    assert "TEST_JUDGE_KEY" in str(caught.value)
    # A traceback would show the server's message, which quotes the key.
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert "sk-very-secret" not in repr(caught.value)


def test_used_up_quota_is_not_waited_for() -> None:
    said = {"error": {"message": "quota", "code": "insufficient_quota"}}
    with chat_server(lambda body, number: (429, said, {})) as server, pytest.raises(EndpointError, match="quota"):
        complete(client_of(server.url))
    assert len(server.requests) == 1


def test_a_request_that_is_refused_is_told_apart() -> None:
    with chat_server(lambda body, number: 400) as server, pytest.raises(Refusal, match="status 400"):
        complete(client_of(server.url))
    assert len(server.requests) == 1


def test_an_unknown_model_names_what_to_check() -> None:
    with chat_server(lambda body, number: 404) as server, pytest.raises(EndpointError, match="the model's name"):
        complete(client_of(server.url))


def test_newer_names_of_the_length_are_learned() -> None:
    said = {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead of 'max_tokens'."}}
    with chat_server(lambda body, number: "ok" if "max_completion_tokens" in body else (400, said, {})) as server:
        client = client_of(server.url)
        assert complete(client).text == complete(client).text == "ok"
    assert len(server.requests) == 3


@pytest.mark.parametrize("likeliest", [0.5, True, "m", {"m": -1.0}, [0.5], None])
def test_likeliest_tokens_that_are_no_list_of_them_are_none(likeliest) -> None:
    assert _first_token(choice_with(likeliest)) == {}


def test_of_the_likeliest_tokens_those_without_a_probability_are_left_out() -> None:
    values = (-0.5, float("nan"), 3.0, -(10**400), None, "-1")
    likeliest = [SimpleNamespace(token=f"{number}\ud800", logprob=value) for number, value in enumerate(values)]
    assert _first_token(choice_with(likeliest)) == {"0?": -0.5}


def choice_with(likeliest) -> SimpleNamespace:
    return SimpleNamespace(logprobs=SimpleNamespace(content=[SimpleNamespace(top_logprobs=likeliest)]))


def test_answers_of_an_endpoint_come_in_order_with_temperature_and_seed() -> None:
    # Four answers at a time: with fewer requests at once none would come.
    four = threading.Barrier(4, timeout=30)

    def answer(body: dict, number: int) -> str:
        four.wait()
        return f" echo {body['messages'][-1]['content']} "

    with chat_server(answer) as server:
        generator = EndpointGenerator(client_of(server.url), "remote", concurrency=4)
        conversations = [[{"role": "user", "content": f"number {index}"}] for index in range(12)]
        answers = generator.generate(conversations, Sampling(0.7, 33, seed=5))
    assert [one.text for one in answers] == [f"echo number {index}" for index in range(12)]
    assert {(one["temperature"], one["max_tokens"], one["seed"]) for one in server.requests} == {(0.7, 33, 5)}
    assert server.most_at_once == 4
