"""Chat completions from an OpenAI-compatible endpoint, retried while there is hope."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from fusion_core.errors import EndpointError, EvaluationError, first_line
from fusion_core.evaluation.judging.bounded_client import BoundedClient, ReplyTooLargeError, ReplyTooLateError

LONGEST_WAIT_SECONDS = 60.0
# Servers write -9999 for nothing at all; an integer of hundreds of digits would be no float.
LOWEST_LOG_PROB = -1e9
TRANSIENT_STATUSES = {408, 409, 425, 429}
# What an endpoint without keys is sent in place of one; the client insists on having something.
NO_KEY = "none"


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served.

    Parameters
    ----------
    model : str
        Its name there.
    base_url : str or None
        Such as ``http://localhost:8000/v1``; None is OpenAI's own.
    key_variable : str
        Environment variable that holds the key; one that is not set is an error only where the endpoint asks for it.
    timeout_seconds : float
        For one request.
    retries : int
        Requests repeated after 429, 5xx, time-outs, lost connections and half replies.
    first_wait_seconds : float
        Waits grow from here, up to a minute, unless the endpoint says how long to wait.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 120.0
    retries: int = 8
    first_wait_seconds: float = 1.0

    @property
    def host(self) -> str:
        """Host and port, for messages and reports."""
        return urlsplit(self.base_url).netloc.rpartition("@")[2] if self.base_url else "api.openai.com"


@dataclass(frozen=True)
class Reply:
    """What the endpoint said.

    Parameters
    ----------
    text : str
    finished : bool
        False where it was cut off at the largest number of tokens.
    prompt_tokens, completion_tokens : int
    first_token : dict
        Log-probabilities of the likeliest first tokens, where they were asked for and the endpoint knows them.
    """

    text: str
    finished: bool
    prompt_tokens: int
    completion_tokens: int
    first_token: dict[str, float] = field(default_factory=dict)


class Refusal(EvaluationError):  # noqa: N818 - it is an answer, not a failure of the endpoint
    """The endpoint refuses this one request: too long for it, or its content is filtered."""


class _TransientError(Exception):
    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class ChatClient:
    """Sends conversations to an endpoint; safe to use from many threads.

    Attributes
    ----------
    retries : int
        Requests that were repeated so far.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.retries = 0
        self._key = os.environ.get(endpoint.key_variable) or NO_KEY
        self._length_field = "max_tokens"
        self._lock = threading.Lock()
        self._client = openai.OpenAI(
            base_url=endpoint.base_url or "https://api.openai.com/v1",
            api_key=self._key,
            max_retries=0,
            http_client=BoundedClient(endpoint.timeout_seconds),
        )

    def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        temperature: float,
        max_tokens: int,
        seed: int | None = None,
        top_logprobs: int | None = None,
    ) -> Reply:
        """Return the reply to a conversation; ``top_logprobs`` asks for as many likeliest first tokens.

        Raises
        ------
        Refusal
            If the endpoint refuses this conversation (400, 413, 422).
        EndpointError
            If it refuses us (401, 403, 404, quota used up), or still fails after all retries.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(self.endpoint.retries + 1),
            wait=self._wait,
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            return retrying(self._request, messages, temperature, max_tokens, seed, top_logprobs)
        except _TransientError as error:
            raise EndpointError(
                f"{self._who} still fails after {self.endpoint.retries + 1} requests ({error}); mend it and run again: "
                "what it has answered is kept."
            ) from error

    @property
    def _who(self) -> str:
        return f"The endpoint {self.endpoint.host} (model {self.endpoint.model!r})"

    def _request(
        self,
        messages: Sequence[Mapping[str, str]],
        temperature: float,
        max_tokens: int,
        seed: int | None,
        top_logprobs: int | None,
    ) -> Reply:
        extra: dict[str, Any] = {self._length_field: max_tokens}
        if seed is not None:
            extra["seed"] = seed
        if top_logprobs is not None:
            extra |= {"logprobs": True, "top_logprobs": top_logprobs}
        completions: Any = self._client.chat.completions
        try:
            answer = completions.create(
                model=self.endpoint.model,
                messages=[dict(message) for message in messages],
                temperature=temperature,
                n=1,
                **extra,
            )
        except openai.APIStatusError as error:
            self._explain(error)
        except (openai.APITimeoutError, openai.APIConnectionError) as error:
            raise _TransientError(self._plain(error)) from error
        except ReplyTooLargeError as error:
            raise EndpointError(
                f"{self._who} sends {error}, which is no chat completion; check its address."
            ) from error
        except ReplyTooLateError as error:
            raise _TransientError(str(error)) from error
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # a body that is no JSON, or ends too early
            raise _TransientError(f"half a reply: {self._plain(error)}") from error
        return _read(answer)

    def _explain(self, error: openai.APIStatusError) -> None:
        """Raise what a status means."""
        status, reason = error.status_code, self._plain(error)
        if status == 429 and error.code == "insufficient_quota":
            raise EndpointError(f"{self._who} says that the account's quota is used up; raise it and run again.")
        if status in TRANSIENT_STATUSES or status >= 500:
            raise _TransientError(f"status {status}", _retry_after(error)) from error
        if status in (401, 403):
            # The server's own message may quote the key.
            variable = self.endpoint.key_variable
            said = "holds none" if self._key == NO_KEY else "holds another"
            raise EndpointError(
                f"{self._who} asks for a valid key (status {status}); {variable} {said}: set it."
            ) from None
        if status == 400 and self._length_field == "max_tokens" and "max_completion_tokens" in reason:
            # Newer models of OpenAI know the setting by this name alone.
            self._length_field = "max_completion_tokens"
            raise _TransientError("the setting max_tokens has another name there", 0.0) from error
        if status in (400, 413, 422):
            raise Refusal(f"{self._who} refuses a request (status {status}: {reason})") from error
        raise EndpointError(
            f"{self._who} answers with status {status} ({reason}); check the address and the model's name."
        ) from error

    def _plain(self, error: Exception) -> str:
        text = first_line(error)
        return text.replace(self._key, "***") if self._key != NO_KEY else text

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        said = error.wait_seconds if isinstance(error, _TransientError) else None
        if said is not None:
            return min(said, LONGEST_WAIT_SECONDS)
        return wait_random_exponential(multiplier=self.endpoint.first_wait_seconds, max=LONGEST_WAIT_SECONDS)(state)

    def _count_retry(self, state: RetryCallState) -> None:
        with self._lock:
            self.retries += 1


def _read(answer: Any) -> Reply:
    # An endpoint may send anything: whatever has no text in it counts as half a reply.
    choices: Any = getattr(answer, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    text = getattr(getattr(choice, "message", None), "content", None)
    if not isinstance(text, str):
        raise _TransientError("half a reply: there is no text in it")
    usage = getattr(answer, "usage", None)
    return Reply(
        text=_writable(text),
        finished=getattr(choice, "finish_reason", None) != "length",
        prompt_tokens=_count(getattr(usage, "prompt_tokens", 0)),
        completion_tokens=_count(getattr(usage, "completion_tokens", 0)),
        first_token=_first_token(choice),
    )


def _first_token(choice: Any) -> dict[str, float]:
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    likeliest = getattr(content[0], "top_logprobs", None) if isinstance(content, list) and content else None
    listed = likeliest if isinstance(likeliest, list) else []
    pairs = [(getattr(one, "token", None), getattr(one, "logprob", None)) for one in listed]
    # No probability is above one; what says so, or says nothing, is left out.
    return {
        _writable(str(token)): float(value)
        for token, value in pairs
        if isinstance(value, int | float) and LOWEST_LOG_PROB <= value <= 0.01
    }


def _writable(text: str) -> str:
    # JSON can spell lone surrogates, which no file of ours can hold.
    return text.encode("utf-8", "replace").decode()


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
