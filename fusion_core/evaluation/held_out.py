"""Held-out scoring: the nats of every response label of every dialogue under one model.

Legend: B dialogues of a batch, T tokens, N response positions, C positions of one chunk, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fusion_core.dialogues import Dialogue
from fusion_core.encoding import EncodedDialogue, Encoder
from fusion_core.errors import DialogueRefusedError, EvaluationError
from fusion_core.evaluation.score_table import DialogueScore, HeldOutScores
from fusion_core.progress import Advance, ignore_progress

CHUNK_POSITIONS = 1024
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
        Called with dialogues done and their total.

    Raises
    ------
    EvaluationError
        If a label's log-probability is NaN or infinite, or no dialogue can be read.
    """
    encoded, refused = _encode(Encoder(tokenizer, max_length_tokens, model_name), dialogues)
    if not encoded:
        reason = next(iter(refused.values()), "there are none")
        raise EvaluationError(
            f"Model {model_name!r} can read none of the {len(dialogues)} held-out dialogues: {reason}"
        )
    nats: dict[int, np.ndarray] = {}
    # Longest first, so that memory runs out at once if at all, and padding stays small.
    waiting = sorted(range(len(encoded)), key=lambda index: -len(encoded[index][1].input_ids))
    while waiting:
        batch = _next_batch(waiting, encoded, batch_tokens)
        try:
            scored = _score_batch(model, [encoded[index][1] for index in batch], device)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise EvaluationError(
                    f"Model {model_name!r}: dialogue {encoded[batch[0]][0].id} alone does not fit in the memory of "
                    f"{device}; lower `max_length_tokens`."
                ) from error
            batch_tokens = max(1, batch_tokens // 2)
            torch.cuda.empty_cache()
            continue
        for index, values in zip(batch, scored, strict=True):
            if not np.isfinite(values).all():
                raise EvaluationError(
                    f"Model {model_name!r} computes NaN or infinite log-probabilities on dialogue "
                    f"{encoded[index][0].id}; try `dtype: float32` for it, or leave it out."
                )
            nats[index] = values
        waiting = waiting[len(batch) :]
        progress(len(nats) + len(refused), len(dialogues))
    return HeldOutScores(
        model_name=model_name,
        max_length_tokens=max_length_tokens,
        dialogues=tuple(_dialogue_score(*encoded[index], nats[index]) for index in range(len(encoded))),
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


def _next_batch(waiting: list[int], encoded: list[tuple[Dialogue, EncodedDialogue]], batch_tokens: int) -> list[int]:
    longest = len(encoded[waiting[0]][1].input_ids)
    return waiting[: max(1, batch_tokens // longest)]


@torch.inference_mode()
def _score_batch(model: PreTrainedModel, batch: list[EncodedDialogue], device: torch.device) -> list[np.ndarray]:
    """Return float64 [N] nats of each dialogue's labels."""
    longest = max(len(one.input_ids) for one in batch)
    # Padding stands on the right, where causal attention does not see it; its id does not matter.
    input_ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
    rows = []
    for index, one in enumerate(batch):
        input_ids_BT[index, : len(one.input_ids)] = torch.from_numpy(one.input_ids.astype(np.int64))
        rows.append(index * longest + one.response_positions.astype(np.int64))
    hidden_BTH = model.base_model(input_ids=input_ids_BT.to(device), use_cache=False).last_hidden_state
    hidden_NH = hidden_BTH.flatten(0, 1)[torch.from_numpy(np.concatenate(rows)).to(device)]
    labels_N = torch.from_numpy(np.concatenate([one.labels for one in batch]).astype(np.int64)).to(device)
    nats_N = -_label_log_probs(model, hidden_NH, labels_N).double().cpu().numpy()
    return np.split(nats_N, list(accumulate(len(one.response_positions) for one in batch))[:-1])


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


def _label_log_probs(model: PreTrainedModel, hidden_NH: Tensor, labels_N: Tensor) -> Tensor:
    """Return float32 [N] log p(label), holding [C, V] logits at a time."""
    head = model.get_output_embeddings()
    parts = []
    for hidden_CH, labels_C in zip(hidden_NH.split(CHUNK_POSITIONS), labels_N.split(CHUNK_POSITIONS), strict=True):
        logits_CV = _scaled(head(hidden_CH).float(), model.config)
        chosen_C = logits_CV.gather(1, labels_C[:, None])[:, 0]
        parts.append(chosen_C - logits_CV.logsumexp(1))
    return torch.cat(parts)


def _scaled(logits_CV: Tensor, config: PretrainedConfig) -> Tensor:
    """Scale and cap logits as the architectures do that put something between output embedding and softmax."""
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits_CV = logits_CV * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits_CV = logits_CV / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits_CV = torch.tanh(logits_CV / cap) * cap
    return logits_CV
