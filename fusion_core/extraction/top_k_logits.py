"""Top-k next-token distributions from hidden states, without ever holding all logits.

Legend: N positions, n positions of one chunk, H hidden size, V vocabulary (rows of the output embedding), K entries,
B blocks of L = 32 columns, T tiles of W columns.

A chunk's logits [n, V] are computed tile by tile. While a tile is in cache its log-sum-exp and the largest logit of
each block are taken; the K largest logits then lie in the K blocks with the largest maxima, so that only 32 K columns
are ranked instead of V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK_COLUMNS = 32
# A tile's float32 logits for a chunk, 2 MiB, stay in a processor's cache; a GPU takes all columns in one launch.
PROCESSOR_TILE_COLUMNS = 2048
# At most so many positions in a chunk, and logits (128 MiB of float32); a GPU needs more to be busy, and has the room.
PROCESSOR_CHUNK = (256, 1 << 25)
CUDA_CHUNK = (2048, 1 << 28)
SMALLEST_CHUNK_POSITIONS = 16
# Candidates beyond K where products come out in half precision and are ranked again exactly.
SPARE_CANDIDATES = 8
# Products of candidates taken at once, so that they stay in a processor's cache.
EXACT_PRODUCTS = 1 << 20


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the product of hidden state and output embedding.

    Parameters
    ----------
    scale : float
        Factor on the product (Cohere, Granite); positive.
    soft_cap : float, optional
        Logits become ``soft_cap * tanh(logits / soft_cap)`` (Gemma-2).
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply it to float32 logits; returns the same tensor where there is nothing to do."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap).mul_(self.soft_cap)
        return logits


@dataclass
class LogitChunk:
    """Logits of one chunk before the transform, and what was read off them while they were in cache.

    ``tiles`` [T, n, W] in the product's dtype, -inf beyond the storable columns; ``block_maxima`` [n, B];
    ``log_normaliser`` [n] float32 over all V columns, after the transform; ``storable`` ids may be returned.
    """

    tiles: Tensor
    block_maxima: Tensor
    log_normaliser: Tensor
    storable: int

    def gather(self, token_ids: Tensor) -> Tensor:
        """Logits [n, m] of some token ids [n, m]."""
        _, rows, width = self.tiles.shape
        row = torch.arange(rows, device=token_ids.device).unsqueeze(1)
        return self.tiles.view(-1)[(token_ids // width * rows + row) * width + token_ids % width]


@torch.no_grad()
def top_k_distributions(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    chunk_size: int | None = None,
    transform: LogitTransform | None = None,
    vocabulary_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the k most probable next tokens and the label's log-probability at each position.

    Parameters
    ----------
    hidden : Tensor [N, H]
        Last hidden states, as the output embedding takes them.
    weight : Tensor [V, H]
        Output embedding, of the same dtype.
    labels : integer Tensor [N]
        The next tokens, in 0..V-1.
    k : int
        Entries per position.
    bias : Tensor [V], optional
        The output embedding's bias.
    chunk_size : int, optional
        Positions whose logits are held at once; by default 256, fewer for large V (2048 on a GPU).
    transform : LogitTransform, optional
        What the model does to its logits.
    vocabulary_size : int, optional
        Only ids below it are returned, where V is padded beyond the tokenizer. The padding takes part in the
        normaliser, because it does in the model's own softmax.

    Returns
    -------
    token_ids : int32 [N, k]
        By descending probability, equal ones by ascending id; -1 pads where fewer than k ids exist.
    log_probs : float32 [N, k]
        Normalised over all V; -inf pads.
    label_log_probs : float32 [N]

    Notes
    -----
    Products accumulate in float32. Half-precision products on a processor are rounded when they come out, so there k
    plus 8 candidates are taken from the rounded logits and computed again in float32, their share of the normaliser
    too; only the remaining tail of the normaliser keeps its rounding.
    """
    positions, device = len(hidden), hidden.device
    token_ids = torch.full((positions, k), -1, dtype=torch.int32, device=device)
    log_probs = torch.full((positions, k), -torch.inf, dtype=torch.float32, device=device)
    label_log_probs = torch.empty(positions, dtype=torch.float32, device=device)
    transform = transform or LogitTransform()
    storable = min(vocabulary_size or len(weight), len(weight))
    step = chunk_size or default_chunk_size(len(weight), device)
    for start in range(0, positions, step):
        rows = slice(start, start + step)
        chunk = chunk_logits(hidden[rows], weight, bias, transform, storable)
        label_ids, entries = labels[rows].to(torch.int64), min(k, storable)
        if chunk.tiles.dtype == torch.float32:
            ids, values, labelled = _read_float32(chunk, label_ids, entries, transform)
        else:
            ids, values, labelled = _read_rounded(chunk, hidden[rows], weight, bias, label_ids, entries, transform)
        token_ids[rows, : ids.shape[1]] = ids.to(torch.int32)
        log_probs[rows, : ids.shape[1]] = values
        label_log_probs[rows] = labelled
    return token_ids, log_probs, label_log_probs


@torch.no_grad()
def top_k_of_logits(
    logits: Tensor, labels: Tensor, k: int, *, vocabulary_size: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `top_k_distributions`, from logits [N, V] that a model computed itself."""
    positions, vocabulary = logits.shape
    storable = min(vocabulary_size or vocabulary, vocabulary)
    logits = logits.float()
    padding = -vocabulary % BLOCK_COLUMNS
    tile = nn.functional.pad(logits, (0, padding), value=-torch.inf)
    tile[:, storable:] = -torch.inf
    maxima = tile.view(positions, -1, BLOCK_COLUMNS).amax(2)
    chunk = LogitChunk(tile.unsqueeze(0), maxima, _log_sum_exp(logits), storable)
    ids, log_probs, label_log_probs = _read_float32(chunk, labels, min(k, storable), LogitTransform())
    token_ids = nn.functional.pad(ids.to(torch.int32), (0, k - ids.shape[1]), value=-1)
    return token_ids, nn.functional.pad(log_probs, (0, k - ids.shape[1]), value=-torch.inf), label_log_probs


def default_chunk_size(vocabulary: int, device: torch.device) -> int:
    """Positions whose logits are held at once on this device."""
    positions, logits = CUDA_CHUNK if device.type == "cuda" else PROCESSOR_CHUNK
    return max(SMALLEST_CHUNK_POSITIONS, min(positions, logits // vocabulary))


def chunk_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transform: LogitTransform,
    storable: int,
    product_dtype: torch.dtype | None = None,
) -> LogitChunk:
    """Compute the logits of a chunk and read block maxima and normaliser off each tile.

    Products come out in ``product_dtype``; by default as fast as the device can, see `top_k_distributions`.
    """
    positions, vocabulary = len(hidden), len(weight)
    width = _tile_columns(vocabulary, hidden.device)
    starts = range(0, vocabulary, width)
    tiles = torch.empty(
        len(starts), positions, width, dtype=product_dtype or _product_dtype(hidden), device=hidden.device
    )
    maxima, normalisers = [], []
    for tile, start in zip(tiles, starts, strict=True):
        stop = min(start + width, vocabulary)
        _product(hidden, weight[start:stop], tile[:, : stop - start])
        if bias is not None:
            tile[:, : stop - start] += bias[start:stop].to(tile.dtype)
        logits = tile[:, : stop - start].float()
        normalisers.append(_log_sum_exp(transform(logits)))
        if storable < start + width:
            tile[:, max(0, storable - start) :] = -torch.inf
            logits = tile.float()
        maxima.append(logits.view(positions, -1, BLOCK_COLUMNS).amax(2))
    return LogitChunk(tiles, torch.cat(maxima, 1), torch.logsumexp(torch.stack(normalisers, 1), 1), storable)


def _tile_columns(vocabulary: int, device: torch.device) -> int:
    whole = -(-vocabulary // BLOCK_COLUMNS) * BLOCK_COLUMNS
    return whole if device.type == "cuda" else min(whole, PROCESSOR_TILE_COLUMNS)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float32 if hidden.device.type == "cuda" else hidden.dtype


def _product(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    if hidden.dtype == out.dtype:
        torch.mm(hidden, weight.T, out=out)
    elif hidden.device.type != "cuda":
        torch.mm(hidden.to(out.dtype), weight.to(out.dtype).T, out=out)
    else:
        out.copy_(torch.mm(hidden, weight.T, out_dtype=out.dtype))


def _log_sum_exp(logits: Tensor) -> Tensor:
    # log_softmax is one fused pass where logsumexp is four; the difference at any column is the normaliser.
    return logits[:, 0] - torch.log_softmax(logits, 1)[:, 0]


def exact_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor) -> Tensor:
    """Logits [n, m] of token ids [n, m] from float32 products, before the transform."""
    step = max(1, EXACT_PRODUCTS // (token_ids.shape[1] * hidden.shape[1]))
    parts = []
    for ids, states in zip(token_ids.split(step), hidden.split(step), strict=True):
        rows = weight.index_select(0, ids.flatten()).float().view(*ids.shape, -1)
        parts.append(rows.mul_(states.float().unsqueeze(1)).sum(2))
    logits = torch.cat(parts)
    return logits if bias is None else logits + bias[token_ids].float()


def _read_float32(
    chunk: LogitChunk, labels: Tensor, k: int, transform: LogitTransform
) -> tuple[Tensor, Tensor, Tensor]:
    ids, logits = rank(chunk, k)
    label_logits = chunk.gather(labels.unsqueeze(1))
    return ids, *_log_probs(transform(logits), transform(label_logits), chunk.log_normaliser.unsqueeze(1))


def _read_rounded(
    chunk: LogitChunk,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    k: int,
    transform: LogitTransform,
) -> tuple[Tensor, Tensor, Tensor]:
    candidates, rounded = _block_candidates(chunk, k + SPARE_CANDIDATES)
    top = rounded.topk(min(k + SPARE_CANDIDATES, chunk.storable), dim=1, sorted=False)
    ids = candidates.gather(1, top.indices)
    exact = transform(exact_logits(hidden, weight, bias, torch.cat([ids, labels.unsqueeze(1)], 1)))
    normaliser = chunk.log_normaliser.unsqueeze(1)
    correction = (exact[:, :-1] - normaliser).exp() - (transform(top.values.float()) - normaliser).exp()
    normaliser = normaliser + torch.log1p(correction.sum(1, keepdim=True))
    ids, values = _order(ids, exact[:, :-1])
    return ids[:, :k], *_log_probs(values[:, :k], exact[:, -1:], normaliser)


def _log_probs(values: Tensor, label_values: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor]:
    # Rounding may put the sum a hair below its largest term, and a probability is never above one.
    return (values - normaliser).clamp_(max=0.0), (label_values - normaliser).clamp_(max=0.0).squeeze(1)


def rank(chunk: LogitChunk, k: int) -> tuple[Tensor, Tensor]:
    """Ids [n, k] and logits [n, k] of a chunk's k largest storable logits; of equal ones the lower ids, in order."""
    candidates, logits = _block_candidates(chunk, k)
    top = logits.topk(k, dim=1)
    ids, values = _order(candidates.gather(1, top.indices), top.values)
    # Which of several logits equal to the k-th were taken is left to chance, in the blocks and among the candidates.
    smallest = values[:, -1:]
    tied = (logits >= smallest).sum(1) > k
    tied |= (chunk.block_maxima >= smallest).sum(1) > min(k, chunk.block_maxima.shape[1])
    if tied.any():
        rows = chunk.tiles[:, tied].transpose(0, 1).flatten(1)
        ranked = rows.sort(dim=1, descending=True, stable=True)
        ids[tied], values[tied] = ranked.indices[:, :k], ranked.values[:, :k]
    return ids, values


def _block_candidates(chunk: LogitChunk, k: int) -> tuple[Tensor, Tensor]:
    """Ids and logits [n, L k] of all columns of the k blocks with the largest maxima."""
    blocks = chunk.block_maxima.topk(min(k, chunk.block_maxima.shape[1]), dim=1, sorted=False).indices
    _, positions, width = chunk.tiles.shape
    per_tile = width // BLOCK_COLUMNS
    row = torch.arange(positions, device=blocks.device).unsqueeze(1)
    places = (blocks // per_tile * positions + row) * per_tile + blocks % per_tile
    logits = chunk.tiles.view(-1, BLOCK_COLUMNS).index_select(0, places.flatten())
    ids = blocks.unsqueeze(2) * BLOCK_COLUMNS + torch.arange(BLOCK_COLUMNS, device=blocks.device)
    return ids.flatten(1), logits.view(positions, -1)


def _order(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort entries by descending value, equal ones by ascending id."""
    ids, by_id = ids.sort(1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, by_value), values
