"""Asking a judge until its reply says what it was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.judged_scores import JudgeCosts
from fusion_core.evaluation.judging.chat_client import ChatClient, Refusal, Reply
from fusion_core.evaluation.judging.reply_log import ReplyLog, reply_key
from fusion_core.progress import Advance, ignore_progress

Value = TypeVar("Value")
Job = TypeVar("Job")
Outcome = TypeVar("Outcome")

# A judge that always takes the most probable token would repeat a reply without a rating word for word.
LOWEST_TEMPERATURE_OF_REPEATS = 0.5
# What stands for the reply where the endpoint refused the request; FastChat writes the same.
REFUSED = "$ERROR$"
# Chat templates stumble over an empty turn.
NOTHING = "(no answer)"


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is asked.

    Parameters
    ----------
    temperature : float
    max_tokens : int
        Of one reply.
    attempts : int
        How often a judgment is asked for before it counts as missing.
    concurrency : int
        Requests under way at once.
    top_logprobs : int or None
        Likeliest first tokens that replies are to come with.
    """

    temperature: float = 0.0
    max_tokens: int = 2048
    attempts: int = 3
    concurrency: int = 8
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Judged(Generic[Value]):
    """One judgment: ``value`` is None where no attempt gave one; ``text`` is the last reply; ``at`` in unix seconds."""

    value: Value | None
    text: str
    attempts: int
    at: float


class JudgeModel:
    """A judge that remembers what it has said.

    Parameters
    ----------
    client : ChatClient
    log : ReplyLog
        Where replies are kept and looked up.
    settings : JudgeSettings
    """

    def __init__(self, client: ChatClient, log: ReplyLog, settings: JudgeSettings) -> None:
        self.settings = settings
        self._client = client
        self._log = log
        self._lock = threading.Lock()
        self._calls = self._reused = self._prompt_tokens = self._completion_tokens = 0
        self._refused = self._answered = 0

    @property
    def model(self) -> str:
        """The judge's name at its endpoint."""
        return self._client.endpoint.model

    @property
    def host(self) -> str:
        """The endpoint's host."""
        return self._client.endpoint.host

    @property
    def costs(self) -> JudgeCosts:
        """What was spent so far."""
        return JudgeCosts(
            calls=self._calls,
            retries=self._client.retries,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            reused=self._reused,
        )

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        read: Callable[[Reply], Value | None],
        reminder: str,
        sample: int = 0,
    ) -> Judged[Value]:
        """Ask for one judgment, again while a reply cannot be read.

        Parameters
        ----------
        messages : sequence of messages
        read : callable
            Gets a reply; returns the judgment in it, or None.
        reminder : str
            What the judge is told after a reply without one: asked the same again, many endpoints say the same again,
            and a judgment that follows the judge's own explanation is the one it was asked for.
        sample : int
            Tells repeated judgments of one answer apart.
        """
        text, at = "", 0.0
        asked = list(messages)
        for attempt in range(self.settings.attempts):
            try:
                reply, at = self._reply(asked, sample, attempt)
            except Refusal:
                with self._lock:
                    self._refused += 1
                # Asking again changes nothing; a refusal costs nothing, so that it is not kept either.
                return Judged(None, REFUSED, attempt + 1, time.time())
            text = reply.text
            value = read(reply)
            if value is not None:
                return Judged(value, text, attempt + 1, at)
            asked = [
                *messages,
                {"role": "assistant", "content": text or NOTHING},
                {"role": "user", "content": reminder},
            ]
        return Judged(None, text, self.settings.attempts, at)

    def ask_all(
        self, jobs: Sequence[Job], ask_one: Callable[[Job], Outcome], progress: Advance = ignore_progress
    ) -> list[Outcome]:
        """Work on all jobs, as many at once as the settings say; return their outcomes in order.

        Raises
        ------
        EvaluationError
            The first that a job raises (no further one is begun then), or if the endpoint refuses every request.
        """
        done = 0

        def work(job: Job) -> Outcome:
            nonlocal done
            outcome = ask_one(job)
            with self._lock:
                done += 1
                progress(done, len(jobs))
            return outcome

        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(work, job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = [one for one in futures if one.done() and not one.cancelled() and one.exception()]
            finally:
                # After a failure or Ctrl-C only what is under way is waited for.
                pool.shutdown(wait=False, cancel_futures=True)
        if failed:
            failed[0].result()
        if self._refused and not self._answered:
            raise EvaluationError(
                f"The endpoint {self.host} refuses every request for model {self.model!r}; check the judge's settings "
                "and the length that the model can read."
            )
        return [future.result() for future in futures]

    def _reply(self, messages: Sequence[Mapping[str, str]], sample: int, attempt: int) -> tuple[Reply, float]:
        settings = self.settings
        temperature = max(settings.temperature, LOWEST_TEMPERATURE_OF_REPEATS) if attempt else settings.temperature
        endpoint = self._client.endpoint
        key = reply_key(
            endpoint.model,
            endpoint.base_url,
            messages,
            temperature,
            settings.max_tokens,
            sample,
            attempt,
            settings.top_logprobs,
        )
        found = self._log.find(key)
        if found is not None:
            with self._lock:
                self._reused += 1
                self._answered += 1
            return found
        seed = sample * settings.attempts + attempt if temperature > 0 else None
        reply = self._client.complete(
            messages,
            temperature=temperature,
            max_tokens=settings.max_tokens,
            seed=seed,
            top_logprobs=settings.top_logprobs,
        )
        at = time.time()
        self._log.add(key, reply, at)
        with self._lock:
            self._calls += 1
            self._answered += 1
            self._prompt_tokens += reply.prompt_tokens
            self._completion_tokens += reply.completion_tokens
        return reply, at
