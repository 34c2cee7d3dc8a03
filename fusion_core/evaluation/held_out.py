"""Held-out scoring: the nats of every response label of every dialogue under one model.

Legend: B dialogues of a batch, T tokens, N response positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusion_core.batching import pad_right
from fusion_core.dialogues import Dialogue
from fusion_core.encoding import EncodedDialogue, Encoder
from fusion_core.errors import DialogueRefusedError, EvaluationError
from fusion_core.evaluation.score_table import DialogueScore, HeldOutScores
from fusion_core.extraction import is_out_of_memory
from fusion_core.output_heads import OutputHead, find_output_head
from fusion_core.progress import Advance, ignore_progress
from fusion_core.top_k_logits import top_k_distributions, top_k_of_logits

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
    # None where the architecture's head is not understood: then its own logits are taken, which needs more memory.
    head = find_output_head(model, torch.from_numpy(encoded[0][1].input_ids.astype(np.int64)).to(device))
    nats: dict[int, np.ndarray] = {}
    # Longest first, so that memory runs out at once if at all, and padding stays small.
    waiting = sorted(range(len(encoded)), key=lambda index: -len(encoded[index][1].input_ids))
    while waiting:
        batch = _next_batch(waiting, encoded, batch_tokens)
        try:
            scored = _score_batch(model, head, [encoded[index][1] for index in batch], device)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
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
def _score_batch(
    model: PreTrainedModel, head: OutputHead | None, batch: list[EncodedDialogue], device: torch.device
) -> list[np.ndarray]:
    """Return float64 [N] nats of each dialogue's labels."""
    # Padding stands on the right, where causal attention does not see it; its id does not matter.
    input_ids_BT = torch.from_numpy(pad_right([one.input_ids for one in batch], fill=0)).to(device)
    longest = input_ids_BT.shape[1]
    rows = [index * longest + one.response_positions.astype(np.int64) for index, one in enumerate(batch)]
    rows_N = torch.from_numpy(np.concatenate(rows)).to(device)
    labels_N = torch.from_numpy(np.concatenate([one.labels for one in batch]).astype(np.int64)).to(device)
    if head is None:
        logits_NV = model(input_ids=input_ids_BT, use_cache=False).logits.flatten(0, 1)[rows_N]
        _, _, log_probs_N = top_k_of_logits(logits_NV, labels_N, 1)
    else:
        hidden_NH = head.body(input_ids=input_ids_BT, use_cache=False).last_hidden_state.flatten(0, 1)[rows_N]
        # Beside the label's log-probability this ranks one token, which costs next to nothing, and holds no [N, V].
        _, _, log_probs_N = top_k_distributions(
            hidden_NH, head.weight, labels_N, 1, bias=head.bias, transform=head.transform
        )
    nats_N = -log_probs_N.double().cpu().numpy()
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
