"""Extraction: a model reads encoded dialogues and leaves its next-token distributions at the response positions.

Legend: D dialogues, N response positions of all of them, n positions of one batch, T tokens of a batch's longest
dialogue, H hidden size, V vocabulary, K entries.

The model's body runs over whole batches; only the hidden states at response positions meet the output embedding.
Padding stands on the right, where a causal model cannot see it from any token that counts, so no mask is needed. Where
the attention takes sequences of different lengths, a batch is packed into one row and has no padding.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion_core.batching import few_lengths, pad_right, token_batches
from fusion_core.config import ExtractionConfig
from fusion_core.distributions import TopK
from fusion_core.errors import ModelError
from fusion_core.extraction.output_heads import OutputHead, find_output_head
from fusion_core.extraction.sampled_logits import position_uniforms, sampled_distributions, sampled_of_logits
from fusion_core.extraction.statistics import Encoded, ExtractionStatistics
from fusion_core.extraction.top_k_logits import LogitTransform, top_k_distributions, top_k_of_logits
from fusion_core.packing import keeps_packed_apart, pack, skips_padding
from fusion_core.progress import Advance, ignore_progress

__all__ = ["ExtractionStatistics", "LogitTransform", "extract_shard", "top_k_distributions"]

logger = logging.getLogger(__name__)

# Logits [T, V] held at once where a model's own are taken: 512 MiB of float32.
OWN_LOGITS = 1 << 27
# A processor takes positions in multiples of these; those filled in are thrown away.
POSITIONS_TOGETHER = 32


@dataclass
class _Known:
    """What was learned of a model and holds for its next shards: its head (None: not understood), whether its
    attention gains by packing, and the budget."""

    head: OutputHead | None
    packs: bool = False
    batch_tokens: int | None = None


_known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()


def extract_shard(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded | None],
    config: ExtractionConfig,
    *,
    model_name: str,
    device: torch.device,
    progress: Advance = ignore_progress,
) -> tuple[TopK, ExtractionStatistics]:
    """Read the next-token distributions of a model at the response positions of some dialogues.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, on ``device``.
    tokenizer : fast tokenizer
        Ids beyond it, where the model's vocabulary is padded, are never stored.
    encoded : sequence of EncodedDialogue or None
        None: the encoder refused the dialogue; it has no positions.
    config : ExtractionConfig
    model_name : str
        For messages.
    device : torch.device
    progress : Advance
        Called with positions done and in all.

    Returns
    -------
    TopK
        Dialogues in the order given; does not depend on how they were batched, but for the rounding of sums.
    ExtractionStatistics

    Raises
    ------
    ModelError
        If the model computes NaN or infinite logits, or one dialogue alone does not fit in memory.
    """
    run = _Extraction(model, count_ids(tokenizer), encoded, config, model_name, device, progress)
    return run.read_all(), run.statistics()


def count_ids(tokenizer: Any) -> int:
    """Return one more than a tokenizer's last id: ids that no token uses may stand among those of its tokens."""
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    return max(len(tokenizer), 1 + max(vocabulary.values(), default=-1))


class _Extraction:
    """One shard's extraction: results are written where their dialogue stands, whatever batch it was read in."""

    def __init__(
        self,
        model: Any,
        vocabulary_size: int,
        encoded: Sequence[Encoded | None],
        config: ExtractionConfig,
        model_name: str,
        device: torch.device,
        progress: Advance,
    ) -> None:
        self.model, self.vocabulary_size, self.encoded, self.config = model, vocabulary_size, encoded, config
        self.model_name, self.device, self.progress = model_name, device, progress
        counts = [0 if dialogue is None else len(dialogue.response_positions) for dialogue in encoded]
        # What follows the last response position is never looked at, so it is not read.
        self.lengths = [
            int(dialogue.response_positions[-1]) + 1 if dialogue is not None and count else 0
            for dialogue, count in zip(encoded, counts, strict=True)
        ]
        self.row_splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        positions, k = int(self.row_splits[-1]), config.top_k
        self.token_ids = np.full((positions, k), -1, dtype=np.int32)
        self.log_probs = np.full((positions, k), -np.inf, dtype=np.float32)
        self.label_log_probs = np.empty(positions, dtype=np.float32)
        self.done = self.tokens_read = 0
        self.started = time.monotonic()
        # See `few_lengths`.
        self.few_shapes = device.type == "cpu"
        self.known = self._know()
        self.budget = self._first_budget()

    def _know(self) -> _Known:
        if self.model not in _known and any(self.lengths):
            first = self._dialogue(self.lengths.index(max(self.lengths)))
            text = torch.from_numpy(first.input_ids.astype(np.int64)).to(self.device)
            head = find_output_head(self.model, text)
            if head is None:
                logger.warning(
                    "Model %r: its output head is not one that is understood; its own logits are taken, in small "
                    "batches, which is slower.",
                    self.model_name,
                )
            packs = skips_padding(self.model) and keeps_packed_apart(self.model, text)
            _known[self.model] = _Known(head, packs)
        return _known.get(self.model, _Known(None))

    def _dialogue(self, index: int) -> Encoded:
        dialogue = self.encoded[index]
        assert dialogue is not None
        return dialogue

    def read_all(self) -> TopK:
        waiting = self._batches(self.lengths)
        while waiting:
            batch = waiting[0]
            try:
                self._read_batch(batch)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(batch)
                left = np.zeros(len(self.lengths), dtype=np.int64)
                rest = np.concatenate(waiting)
                left[rest] = np.asarray(self.lengths)[rest]
                waiting = self._batches(left)
                continue
            waiting.pop(0)
            self.progress(self.done, int(self.row_splits[-1]))
        return TopK(self.token_ids, self.log_probs, self.label_log_probs, self.row_splits)

    def _batches(self, lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        return token_batches(
            lengths, self.budget, packed=self.known.packs, few_shapes=self.few_shapes and not self.known.packs
        )

    def _padded(self, batch: np.ndarray) -> int:
        longest = [self.lengths[int(batch[0])]]
        return int(few_lengths(longest)[0]) if self.few_shapes else longest[0]

    def _first_budget(self) -> int:
        budgets = [self.config.batch_tokens]
        if self.known.batch_tokens is not None:
            budgets.append(self.known.batch_tokens)
        if self.known.head is None:
            budgets.append(max(1, OWN_LOGITS // int(self.model.config.get_text_config().vocab_size)))
        return min(budgets)

    def _halve(self, batch: np.ndarray) -> None:
        longest = self.lengths[int(batch[0])]
        if len(batch) == 1:
            raise ModelError(
                f"Model {self.model_name!r}: dialogue {self._dialogue(int(batch[0])).dialogue_id} of {longest} tokens "
                f"alone does not fit in the memory of {self.device}; lower `max_length_tokens` of the recipe or take a "
                "device with more memory."
            ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        read = sum(self.lengths[int(index)] for index in batch) if self.known.packs else len(batch) * longest
        self.budget = self.known.batch_tokens = max(read // 2, longest)
        logger.warning(
            "Model %r: out of memory, going on with %d tokens in a batch; set `batch_tokens` to that next time.",
            self.model_name,
            self.budget,
        )

    @torch.inference_mode()
    def _read_batch(self, batch: np.ndarray) -> None:
        dialogues = [self._dialogue(int(index)) for index in batch]
        ids = [dialogue.input_ids[: self.lengths[int(index)]] for dialogue, index in zip(dialogues, batch, strict=True)]
        arguments: dict[str, Any] = {"use_cache": False}
        if self.known.packs:
            input_ids, position_ids, starts = pack(ids)
            arguments["position_ids"] = position_ids.to(self.device)
        else:
            input_ids = torch.from_numpy(pad_right(ids, fill=0, length=self._padded(batch)))
            starts = np.arange(len(ids)) * input_ids.shape[1]
        arguments["input_ids"] = input_ids.to(self.device)
        rows = np.repeat(np.arange(len(batch)), [len(dialogue.response_positions) for dialogue in dialogues])
        at = starts[rows] + np.concatenate([dialogue.response_positions for dialogue in dialogues]).astype(np.int64)
        labels = np.concatenate([d.input_ids[d.response_positions + 1] for d in dialogues]).astype(np.int64)
        read = self._distributions(arguments, torch.from_numpy(at), torch.from_numpy(labels), dialogues)
        token_ids, log_probs, label_log_probs = (part[: len(at)] for part in read)
        places = np.concatenate([np.arange(self.row_splits[i], self.row_splits[i + 1]) for i in batch])
        self.token_ids[places] = token_ids.cpu().numpy()
        self.log_probs[places] = log_probs.cpu().numpy()
        self.label_log_probs[places] = label_log_probs.cpu().numpy()
        self._refuse_not_finite(places, rows, dialogues)
        self.done += len(places)
        self.tokens_read += input_ids.numel()

    def _distributions(
        self, arguments: dict[str, Any], at: Tensor, labels: Tensor, dialogues: list[Encoded]
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, k = self.known.head, self.config.top_k
        settings: dict[str, Any] = {"vocabulary_size": self.vocabulary_size}
        uniforms = self._uniforms(dialogues) if self.config.truncation == "sampled" else None
        if self.few_shapes:
            at, labels = _fill_up(at), _fill_up(labels)
            uniforms = None if uniforms is None else _fill_up(uniforms)
        if head is None:
            logits = self.model(**arguments).logits.flatten(0, 1)
            logits, labels = logits[at.to(logits.device)], labels.to(logits.device)
            if uniforms is not None:
                return sampled_of_logits(logits, labels, k, uniforms.to(logits.device), **settings)
            return top_k_of_logits(logits, labels, k, **settings)
        hidden = head.body(**arguments).last_hidden_state.flatten(0, 1)
        hidden = hidden[at.to(hidden.device)]
        # Of a model that is spread, the last layer and the output embedding may lie on two devices.
        with head.loaded() as (weight, bias):
            hidden, labels = hidden.to(weight.device), labels.to(weight.device)
            settings |= {"bias": bias, "transform": head.transform}
            if uniforms is not None:
                return sampled_distributions(hidden, weight, labels, k, uniforms.to(weight.device), **settings)
            return top_k_distributions(hidden, weight, labels, k, **settings)

    def _uniforms(self, dialogues: list[Encoded]) -> Tensor:
        seed = self.config.seed
        numbers = [position_uniforms(seed, d.dialogue_id, len(d.response_positions)) for d in dialogues]
        return torch.from_numpy(np.concatenate(numbers))

    def _refuse_not_finite(self, places: np.ndarray, rows: np.ndarray, dialogues: list[Encoded]) -> None:
        finite = np.isfinite(self.label_log_probs[places]) & np.isfinite(self.log_probs[places, 0])
        if not finite.all():
            dialogue = dialogues[int(rows[np.argmin(finite)])]
            raise ModelError(
                f"Model {self.model_name!r} computes NaN or infinite logits in dialogue {dialogue.dialogue_id}; try "
                "`dtype: float32` or bfloat16 for this model, or check its weights."
            )

    def statistics(self) -> ExtractionStatistics:
        tokens = int(sum(self.lengths))
        return ExtractionStatistics(
            positions=int(self.row_splits[-1]),
            tokens=tokens,
            padding_share=1.0 - tokens / self.tokens_read if self.tokens_read else 0.0,
            batch_tokens=self.budget,
            seconds=time.monotonic() - self.started,
            own_logits=bool(tokens) and self.known.head is None,
        )


def _fill_up(numbers: Tensor) -> Tensor:
    return nn.functional.pad(numbers, (0, -len(numbers) % POSITIONS_TOGETHER))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a forward pass failed for want of memory."""
    # The processor's allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
