"""Answers of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fusion_core.evaluation.generation import Conversation, Generation, Sampling
from fusion_core.evaluation.judging.chat_client import ChatClient
from fusion_core.progress import Advance, ignore_progress


class EndpointGenerator:
    """Answers over HTTP, several conversations at once.

    Parameters
    ----------
    client : ChatClient
    name : str
        What tables call the model.
    concurrency : int
        Requests under way at once.
    """

    def __init__(self, client: ChatClient, name: str, *, concurrency: int = 8) -> None:
        self._client = client
        self._name = name
        self._concurrency = concurrency

    @property
    def name(self) -> str:
        """What tables call the model."""
        return self._name

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, progress: Advance = ignore_progress
    ) -> list[Generation]:
        """Return one response for each conversation, in their order.

        Raises
        ------
        EvaluationError
            If the endpoint refuses a conversation, or us, or fails after all retries.
        """

        def answer(conversation: Conversation) -> Generation:
            reply = self._client.complete(
                conversation,
                temperature=0.0 if sampling.is_greedy else sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                seed=None if sampling.is_greedy else sampling.seed,
            )
            return Generation(reply.text.strip(), reply.finished, reply.prompt_tokens, reply.completion_tokens)

        responses: list[Generation] = []
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for response in pool.map(answer, conversations):
                    responses.append(response)
                    progress(len(responses), len(conversations))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return responses
