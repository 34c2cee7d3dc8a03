"""Batched generation with transformers.

Legend: B conversations of a batch, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from fusion_core.encoding.chat_templates import ChatTemplate
from fusion_core.encoding.encoder import Encoder
from fusion_core.errors import DialogueRefusedError, EvaluationError
from fusion_core.evaluation.generation import Conversation, Generation, Sampling
from fusion_core.extraction.extract import is_out_of_memory
from fusion_core.progress import Advance, ignore_progress


class TransformersGenerator:
    """Answers with a model loaded in this process.

    Parameters
    ----------
    model : PreTrainedModel
        On its device, in evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        The model's own, with a chat template.
    name : str
        For messages and tables.
    batch_tokens : int
        Conversations times (longest prompt plus new tokens) of one batch, at most; halved by itself when the device's
        memory runs out.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, name: str, *, batch_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._name = name
        self._batch_tokens = batch_tokens
        self._template = ChatTemplate(tokenizer, name)
        self._end_ids = end_of_turn_ids(tokenizer, name, model.generation_config)

    @property
    def name(self) -> str:
        """What tables call the model."""
        return self._name

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, progress: Advance = ignore_progress
    ) -> list[Generation]:
        """Return one response for each conversation, in their order.

        What is drawn for a conversation depends on it and the seed alone, not on the batch it is in (but for the
        rounding of batched products).

        Raises
        ------
        EvaluationError
            If a conversation cannot be written in the model's template, or does not fit in the memory alone.
        """
        prompts = [prompt_ids(self._tokenizer, self._template, self._name, one) for one in conversations]
        rooms = [self._room(len(ids), sampling.max_new_tokens) for ids in prompts]
        responses: dict[int, Generation] = {
            # A prompt that fills the model's context leaves no room for a word.
            index: Generation("", False, len(prompts[index]), 0)
            for index, room in enumerate(rooms)
            if room == 0
        }
        # Longest first, so that memory runs out at once if at all, and padding stays small.
        waiting = sorted((index for index in range(len(prompts)) if rooms[index]), key=lambda i: -len(prompts[i]))
        while waiting:
            needed = len(prompts[waiting[0]]) + rooms[waiting[0]]
            # A batch has one limit for all its answers, so prompts to which the context leaves less room stay apart; in
            # this order those with equal room stand together.
            room = rooms[waiting[0]]
            most = max(1, self._batch_tokens // needed)
            batch = [index for index in waiting[:most] if rooms[index] == room]
            try:
                answers = self._generate_batch([prompts[i] for i in batch], room, sampling)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise EvaluationError(
                        f"Model {self._name!r}: one conversation of {needed} tokens, answer included, does not fit in "
                        f"the memory of {self._model.device}; lower `max_new_tokens`."
                    ) from error
                self._batch_tokens = max(1, self._batch_tokens // 2)
                torch.cuda.empty_cache()
                continue
            responses |= dict(zip(batch, answers, strict=True))
            waiting = waiting[len(batch) :]
            progress(len(responses), len(conversations))
        return [responses[index] for index in range(len(conversations))]

    def _room(self, prompt_tokens: int, wanted: int) -> int:
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return wanted if context is None else max(0, min(wanted, context - prompt_tokens))

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], room: int, sampling: Sampling) -> list[Generation]:
        longest = max(map(len, prompts))
        pad = self._end_ids[0] if self._end_ids else 0
        device = self._model.device
        input_ids_BT = torch.full((len(prompts), longest), pad, device=device)
        mask_BT = torch.zeros_like(input_ids_BT)
        for row, ids in enumerate(prompts):
            input_ids_BT[row, longest - len(ids) :] = torch.tensor(ids, device=device)
            mask_BT[row, longest - len(ids) :] = 1
        # Whatever is not said here would come from the checkpoint's own generation config.
        settings = GenerationConfig(
            max_new_tokens=room,
            max_length=None,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=self._end_ids or None,
            pad_token_id=pad,
        )
        processors = LogitsProcessorList()
        if not sampling.is_greedy:
            processors.append(SeededDraw(prompts, sampling, device))
        generating: Any = self._model
        output_BS = generating.generate(
            input_ids=input_ids_BT, attention_mask=mask_BT, generation_config=settings, logits_processor=processors
        )
        return [
            self._response(ids, new.tolist()) for ids, new in zip(prompts, output_BS[:, longest:].cpu(), strict=True)
        ]

    def _response(self, prompt: list[int], new: list[int]) -> Generation:
        ends = [index for index, token in enumerate(new) if token in self._end_ids]
        length = ends[0] if ends else len(new)
        text = str(self._tokenizer.decode(new[:length], skip_special_tokens=True)).strip()
        return Generation(text, bool(ends), len(prompt), length + bool(ends))


class SeededDraw(LogitsProcessor):
    """Draws tokens by the Gumbel-max trick, each row of a batch with random numbers of its own.

    The most probable token of ``scores / temperature + noise`` is a draw from softmax(scores / temperature)
    (Gumbel, Statistical Theory of Extreme Values, 1954), so generation itself stays greedy.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], sampling: Sampling, device: torch.device) -> None:
        self._temperature = sampling.temperature
        self._rows = [torch.Generator(device).manual_seed(seed_of(ids, sampling.seed)) for ids in prompts]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return perturbed scores, float32 [B, V]."""
        drawn = scores.float() / self._temperature
        for row, generator in zip(drawn, self._rows, strict=True):
            # -log of an exponential variable has the standard Gumbel distribution.
            row -= torch.empty_like(row).exponential_(generator=generator).log()
        return cast(torch.FloatTensor, drawn)


def prompt_ids(tokenizer: Tokenizer, template: ChatTemplate, name: str, conversation: Conversation) -> list[int]:
    """Return the tokens that a model continues with its response.

    Raises
    ------
    EvaluationError
        If the model's chat template refuses the conversation.
    """
    try:
        text = template.prompt(conversation)
    except DialogueRefusedError as error:
        raise EvaluationError(
            f"Model {name!r} cannot read a conversation that begins {conversation[0]['content'][:40]!r}: {error}."
        ) from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_of_turn_ids(tokenizer: Tokenizer, name: str, settings: GenerationConfig | None) -> list[int]:
    """Return the tokens that end a response: the checkpoint's, the tokenizer's, and what its template writes there."""
    given = settings.eos_token_id if settings is not None else None
    ids = [given] if isinstance(given, int) else list(given or [])
    ids += [tokenizer.eos_token_id, Encoder(tokenizer, 1, name).end_of_turn_id]
    return list(dict.fromkeys(int(one) for one in ids if one is not None))


def seed_of(ids: Sequence[int], seed: int) -> int:
    """Return a seed of its own for each prompt, below 2**63."""
    digest = hashlib.sha256(f"{seed} {list(ids)}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
