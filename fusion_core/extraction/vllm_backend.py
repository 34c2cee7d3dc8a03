"""Extraction through vLLM: the log-probabilities it makes of a prompt's tokens.

Legend: T tokens of one dialogue, N response positions, K entries.

Limits, beside those that the config refuses: log-probabilities are made at every position of a prompt, not at response
positions alone, and pass through Python objects, so that much of vLLM's speed goes there. Their logits [T, V] are held
for as many tokens as `batch_tokens` says. They are of the model's own precision before their softmax in float32, so
that equal distributions of transformers differ in the last digits; vLLM's kernels for a batch depend on what else is
in it. vLLM pins its own versions of torch and transformers: it wants an environment of its own.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_core.config import ExtractionConfig
from fusion_core.distributions import TopK
from fusion_core.errors import ConfigError, ModelError, first_line
from fusion_core.extraction.statistics import Encoded, ExtractionStatistics
from fusion_core.models.identity import ResolvedModel
from fusion_core.progress import Advance, ignore_progress

# Padding ids that a vocabulary has beyond the tokenizer may be among the most probable, and are not stored.
SPARE_ENTRIES = 8
# Prompts handed over at once, between two reports of progress.
BATCH_DIALOGUES = 256


def check_vllm() -> None:
    """Make sure that vLLM is installed, without the time that importing it takes.

    Raises
    ------
    ConfigError
        It is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "`extraction.backend: vllm` needs vLLM, which is not installed; run `pip install -e '.[vllm]'` in the "
            "clone of Fuseline with an environment of its own, or set `backend: transformers`."
        )


class VllmReader:
    """A model in vLLM's engine.

    Parameters
    ----------
    model : ResolvedModel
    vocabulary_size : int
        Ids beyond it are never stored.
    config : ExtractionConfig
    max_length_tokens : int
        Of the longest dialogue.
    devices : int
        GPUs that the model is spread over.

    Raises
    ------
    ConfigError
        vLLM is not installed.
    ModelError
        It cannot load the model.
    """

    def __init__(
        self, model: ResolvedModel, vocabulary_size: int, config: ExtractionConfig, max_length_tokens: int, devices: int
    ) -> None:
        check_vllm()
        import vllm

        self._vllm: Any = vllm
        self._model_name, self._vocabulary_size, self._config = model.name, vocabulary_size, config
        self._entries = config.top_k + SPARE_ENTRIES
        # One token must be generated after the prompt; nothing looks at it.
        longest = max_length_tokens + 1
        try:
            self._engine = self._vllm.LLM(
                model=str(model.folder),
                skip_tokenizer_init=True,
                trust_remote_code=model.trust_remote_code,
                dtype=model.dtype,
                tensor_parallel_size=devices,
                max_model_len=longest,
                max_num_batched_tokens=max(config.batch_tokens, longest),
                max_logprobs=self._entries,
                logprobs_mode="raw_logprobs",
                # A cached prefix would have no log-probabilities.
                enable_prefix_caching=False,
                # The checkpoint's generation settings would change the probabilities.
                generation_config="vllm",
                seed=0,
            )
        except Exception as error:
            raise ModelError(
                f"Model {model.name!r} in {model.folder} cannot be loaded by vLLM: {first_line(error)}"
            ) from error

    def read(
        self, encoded: Sequence[Encoded | None], progress: Advance = ignore_progress
    ) -> tuple[TopK, ExtractionStatistics]:
        """Do what `extract_shard` does.

        Raises
        ------
        ModelError
            If vLLM gives NaN or infinite log-probabilities, or none at a position.
        """
        started = time.monotonic()
        counts = [0 if dialogue is None else len(dialogue.response_positions) for dialogue in encoded]
        row_splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        positions, k = int(row_splits[-1]), self._config.top_k
        token_ids = np.full((positions, k), -1, np.int32)
        log_probs = np.full((positions, k), -np.inf, np.float32)
        label_log_probs = np.empty(positions, np.float32)
        read = [index for index, count in enumerate(counts) if count]
        parameters = self._vllm.SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=self._entries, detokenize=False
        )
        tokens = done = 0
        for first in range(0, len(read), BATCH_DIALOGUES):
            batch = read[first : first + BATCH_DIALOGUES]
            prompts = [_prompt(_of(encoded, index)) for index in batch]
            answers = self._engine.generate(
                [self._vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], parameters, use_tqdm=False
            )
            for index, prompt, answer in zip(batch, prompts, answers, strict=True):
                dialogue = _of(encoded, index)
                self._check_positions(dialogue, prompt, answer.prompt_logprobs)
                for row, position in enumerate(dialogue.response_positions, start=int(row_splits[index])):
                    found = answer.prompt_logprobs[int(position) + 1]
                    self._store(found, prompt[int(position) + 1], token_ids[row], log_probs[row])
                    label_log_probs[row] = found[prompt[int(position) + 1]].logprob
                self._refuse_not_finite(dialogue, label_log_probs[row_splits[index] : row_splits[index + 1]])
                tokens += len(prompt)
            done += sum(counts[index] for index in batch)
            progress(done, positions)
        statistics = ExtractionStatistics(
            positions=positions,
            tokens=tokens,
            padding_share=0.0,
            batch_tokens=self._config.batch_tokens,
            seconds=time.monotonic() - started,
            own_logits=False,
        )
        return TopK(token_ids, log_probs, label_log_probs, row_splits), statistics

    def _store(self, found: Mapping[int, Any], label: int, token_ids: np.ndarray, log_probs: np.ndarray) -> None:
        # The label is always among them; beyond the most probable ones it is no entry.
        entries = [
            (-value.logprob, token)
            for token, value in found.items()
            if token < self._vocabulary_size and (token != label or value.rank <= self._entries)
        ]
        for place, (negative, token) in enumerate(sorted(entries)[: len(token_ids)]):
            token_ids[place], log_probs[place] = token, min(0.0, -negative)

    def _check_positions(self, dialogue: Encoded, prompt: list[int], answer: Sequence[Any] | None) -> None:
        if (
            answer is None
            or len(answer) != len(prompt)
            or any(
                not answer[int(position) + 1] or prompt[int(position) + 1] not in answer[int(position) + 1]
                for position in dialogue.response_positions
            )
        ):
            found = 0 if answer is None else sum(entry is not None for entry in answer)
            raise ModelError(
                f"Model {self._model_name!r}: vLLM gave log-probabilities at {found} of {len(prompt) - 1} positions of "
                f"dialogue {dialogue.dialogue_id}; use `backend: transformers`, or another version of vLLM."
            )

    def _refuse_not_finite(self, dialogue: Encoded, label_log_probs: np.ndarray) -> None:
        if not np.isfinite(label_log_probs).all():
            raise ModelError(
                f"Model {self._model_name!r} computes NaN or infinite logits in dialogue {dialogue.dialogue_id}; try "
                "`dtype: float32` or bfloat16 for this model, or check its weights."
            )


def _of(encoded: Sequence[Encoded | None], index: int) -> Encoded:
    dialogue = encoded[index]
    assert dialogue is not None
    return dialogue


def _prompt(dialogue: Encoded) -> list[int]:
    # The label of the last response position belongs to it; what follows is never looked at.
    return dialogue.input_ids[: int(dialogue.response_positions[-1]) + 2].tolist()
