"""Held-out scoring: the nats of every response label of every dialogue under one model.

Legend: N response positions of one dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusion_core.config import ExtractionConfig
from fusion_core.dialogues import Dialogue
from fusion_core.encoding.encoder import EncodedDialogue, Encoder
from fusion_core.errors import DialogueRefusedError, EvaluationError
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores
from fusion_core.extraction.extract import extract_shard
from fusion_core.progress import Advance, ignore_progress

# Scores are artifacts: a label's nats are kept to this many decimals.
NATS_DECIMALS = 6


def score_held_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Dialogue],
    *,
    max_length_tokens: int,
    batch_tokens: int,
    model_name: str,
    device: torch.device,
    progress: Advance = ignore_progress,
) -> HeldOutScores:
    """Read dialogues in the model's own tokens and template and keep -log p of every response label.

    Divided by response bytes, the nats compare across tokenizers: a response's bytes are the same for every model,
    its tokens are not. Each response's end of turn counts in the nats. ``compare`` makes a table of several models.

    Parameters
    ----------
    model : PreTrainedModel
        On ``device``, in evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        The model's own.
    dialogues : sequence of Dialogue
    max_length_tokens : int
        Dialogues are cut here.
    batch_tokens : int
        Tokens of one forward pass, padding included; a single longer dialogue is a batch of its own. Halved by itself
        when the device's memory runs out.
    model_name : str
        For messages and tables.
    device : torch.device
    progress : Advance
        Called with response positions done and their total.

    Raises
    ------
    EvaluationError
        If no dialogue can be read.
    ModelError
        If the model computes NaN or infinite logits, or one dialogue alone does not fit in memory.
    """
    encoded, refused = _encode(Encoder(tokenizer, max_length_tokens, model_name), dialogues)
    if not encoded:
        reason = next(iter(refused.values()), "there are none")
        raise EvaluationError(
            f"Model {model_name!r} can read none of the {len(dialogues)} held-out dialogues: {reason}"
        )
    # Beside the label's log-probability this ranks one token, which costs next to nothing.
    top_k, _ = extract_shard(
        model,
        tokenizer,
        [own for _, own in encoded],
        ExtractionConfig(top_k=1, batch_tokens=batch_tokens),
        model_name=model_name,
        device=device,
        progress=progress,
    )
    nats = np.split(-top_k.label_log_probs.astype(np.float64), top_k.row_splits[1:-1])
    return HeldOutScores(
        model_name=model_name,
        max_length_tokens=max_length_tokens,
        dialogues=tuple(_dialogue_score(*pair, nats_N) for pair, nats_N in zip(encoded, nats, strict=True)),
        refused=refused,
    )


def _encode(
    encoder: Encoder, dialogues: Sequence[Dialogue]
) -> tuple[list[tuple[Dialogue, EncodedDialogue]], dict[str, str]]:
    encoded, refused = [], {}
    for dialogue, outcome in zip(dialogues, encoder.encode_all(dialogues), strict=True):
        if isinstance(outcome, DialogueRefusedError):
            refused[dialogue.id] = str(outcome)
        else:
            encoded.append((dialogue, outcome))
    return encoded, refused


def _dialogue_score(dialogue: Dialogue, encoded: EncodedDialogue, nats_N: np.ndarray) -> DialogueScore:
    lengths = [len(response.encode()) for response in dialogue.responses]
    starts = np.array([0, *accumulate(length + 1 for length in lengths)])
    ends_N = starts[encoded.turns] + encoded.byte_ends + encoded.is_end_of_turn
    return DialogueScore(
        dialogue_id=dialogue.id,
        domain=dialogue.domain,
        response_bytes=tuple(lengths),
        ends=tuple(int(end) for end in ends_N),
        nats=tuple(round(float(value), NATS_DECIMALS) for value in nats_N),
    )
