"""Generation with vLLM, where it is installed and a GPU is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from fusion_core.encoding.chat_templates import ChatTemplate
from fusion_core.errors import ModelError, first_line
from fusion_core.evaluation.generation import Conversation, Generation, Sampling
from fusion_core.evaluation.generation_transformers import end_of_turn_ids, prompt_ids, seed_of
from fusion_core.models.identity import ResolvedModel
from fusion_core.progress import Advance, ignore_progress

# vLLM takes this share of every GPU for itself; the rest stays for what else the process holds.
GPU_MEMORY_SHARE = 0.85


class VllmGenerator:
    """Answers with vLLM's engine, spread over the GPUs that are visible.

    Parameters
    ----------
    model : ResolvedModel
    tokenizer : PreTrainedTokenizerBase
        The model's own, with a chat template: prompts are written here, so that both engines read the same tokens.

    Raises
    ------
    ModelError
        If vLLM cannot load the checkpoint.
    """

    def __init__(self, model: ResolvedModel, tokenizer: Tokenizer) -> None:
        import vllm

        self._parameters: Any = vllm.SamplingParams
        self._tokenizer = tokenizer
        self._name = model.name
        self._template = ChatTemplate(tokenizer, model.name)
        try:
            settings = GenerationConfig.from_pretrained(model.folder)
        except OSError:
            settings = None
        self._end_ids = end_of_turn_ids(tokenizer, model.name, settings)
        try:
            self._engine: Any = vllm.LLM(
                model=str(model.folder),
                dtype=model.dtype,
                trust_remote_code=model.trust_remote_code,
                tensor_parallel_size=torch.cuda.device_count(),
                gpu_memory_utilization=GPU_MEMORY_SHARE,
                # The checkpoint's own settings of sampling stay out.
                generation_config="vllm",
            )
        except Exception as error:
            raise ModelError(
                f"Model {model.name!r}: vLLM cannot load {model.folder} ({first_line(error)}); "
                "free the GPU's memory, or run where vLLM is not installed: transformers answers then."
            ) from error
        self._context = int(self._engine.llm_engine.model_config.max_model_len)

    @property
    def name(self) -> str:
        """What tables call the model."""
        return self._name

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, progress: Advance = ignore_progress
    ) -> list[Generation]:
        """Return one response for each conversation, in their order."""
        prompts = [prompt_ids(self._tokenizer, self._template, self._name, one) for one in conversations]
        fitting = [index for index, ids in enumerate(prompts) if len(ids) < self._context]
        outputs = self._engine.generate(
            [{"prompt_token_ids": prompts[index]} for index in fitting],
            [self._sampling(prompts[index], sampling) for index in fitting],
            use_tqdm=False,
        )
        responses = [Generation("", False, len(ids), 0) for ids in prompts]
        for index, output in zip(fitting, outputs, strict=True):
            written = output.outputs[0]
            ids = [token for token in written.token_ids if token not in self._end_ids]
            text = str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()
            finished = written.finish_reason == "stop"
            responses[index] = Generation(text, finished, len(prompts[index]), len(written.token_ids))
        progress(len(prompts), len(prompts))
        return responses

    def _sampling(self, ids: list[int], sampling: Sampling) -> Any:
        return self._parameters(
            temperature=0.0 if sampling.is_greedy else sampling.temperature,
            max_tokens=min(sampling.max_new_tokens, self._context - len(ids)),
            seed=seed_of(ids, sampling.seed),
            stop_token_ids=self._end_ids,
        )
