"""Small vocabularies and tokenizations by hand, and projection written down plainly as its reference.

Legend: N pivot positions, M source rows, K entries.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fusion_core.alignment import BytePositions, SharedText, Spans
from fusion_core.alignment.positions import align_spans
from fusion_core.distributions import TopK
from fusion_core.encoding.token_bytes import TokenBytes

END = b"<end>"


def make_vocabulary(values: Sequence[bytes], special: Sequence[int] = ()) -> TokenBytes:
    """A vocabulary of given bytes."""
    is_special = np.zeros(len(values), bool)
    is_special[list(special)] = True
    digest = hashlib.sha256(repr((list(values), is_special.tolist())).encode()).hexdigest()
    return TokenBytes(list(values), is_special, np.zeros(len(values), bool), digest)


def make_spans(
    vocabulary: TokenBytes,
    responses: Sequence[Sequence[int]],
    texts: Sequence[bytes],
    end_token: int | None = None,
    first_leads: Sequence[int] | None = None,
) -> Spans:
    """Place tokens on texts, one dialogue each; an end token closes each response that is spelled whole.

    The first token of each begins ``first_leads`` bytes before its text; by default as many as there are too many.
    """
    starts, ends, leads, labels, is_end, splits = [], [], [], [], [], [0]
    base = 0
    for number, (tokens, text) in enumerate(zip(responses, texts, strict=True)):
        spelled = b"".join(vocabulary.values[token] for token in tokens)
        lead = max(len(spelled) - len(text), 0) if first_leads is None else first_leads[number]
        assert spelled[lead:] == text[: len(spelled) - lead]
        place = -lead
        for token in tokens:
            stop = place + len(vocabulary.values[token])
            starts.append(base + max(place, 0))
            ends.append(base + max(stop, 0))
            leads.append(max(-place, 0))
            labels.append(token)
            is_end.append(False)
            place = stop
        if end_token is not None and place == len(text):
            starts.append(base + place)
            ends.append(base + place)
            leads.append(0)
            labels.append(end_token)
            is_end.append(True)
        splits.append(len(labels))
        base += len(text) + 1
    return Spans(
        np.array(starts, np.int64),
        np.array(ends, np.int64),
        np.array(leads, np.int32),
        np.array(labels, np.int32),
        np.array(is_end, bool),
        np.array(splits, np.int64),
    )


def share(texts: Sequence[bytes], pivot: Spans, source: Spans, pivot_bytes: TokenBytes, source_bytes: TokenBytes):
    """Return the shared text and the positions aligned on it."""
    buffer = np.frombuffer(b"".join(text + b"\xff" for text in texts), np.uint8)
    rows, bytes_read = align_spans(pivot.starts, pivot.ends, source.starts, source.ends)
    return (
        SharedText(buffer, pivot, source, pivot_bytes, source_bytes),
        BytePositions(rows, bytes_read, pivot.row_splits),
    )


def prefix_map(source: TokenBytes, pivot: TokenBytes) -> np.ndarray:
    """The bytes method, written down plainly."""
    mapped = np.full(len(source), -1, np.int32)
    for index, value in enumerate(source.values):
        if not source.is_special[index]:
            mapped[index] = longest_prefix(pivot, value)
    return mapped


def longest_prefix(vocabulary: TokenBytes, value: bytes) -> int:
    """The longest token that is a prefix of some bytes; the first of several equal ones."""
    best = -1
    for index, token in enumerate(vocabulary.values):
        fits = token and not vocabulary.is_special[index] and value.startswith(token)
        if fits and (best < 0 or len(token) > len(vocabulary.values[best])):
            best = index
    return best


def dense_rows(probabilities: np.ndarray, labels: np.ndarray, row_splits: np.ndarray, top_k: int | None = None) -> TopK:
    """Truncate dense distributions [M, V] to their top k."""
    top_k = top_k or probabilities.shape[1]
    ids = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.take_along_axis(probabilities, ids, 1)).astype(np.float32)
        label_log_probs = np.log(probabilities[np.arange(len(labels)), labels]).astype(np.float32)
    ids = np.where(np.isfinite(log_probs), ids, -1).astype(np.int32)
    return TopK(ids, log_probs, label_log_probs, row_splits)


def one_hot(labels: np.ndarray, row_splits: np.ndarray, top_k: int = 10) -> TopK:
    """A source that is certain of the gold text."""
    ids = np.full((len(labels), top_k), -1, np.int32)
    log_probs = np.full((len(labels), top_k), -np.inf, np.float32)
    ids[:, 0], log_probs[:, 0] = labels, 0.0
    return TopK(ids, log_probs, np.zeros(len(labels), np.float32), row_splits)


def row_masses(top_k: TopK, position: int) -> dict[int, float]:
    """One row as a dictionary."""
    pairs = zip(top_k.token_ids[position], np.exp(top_k.log_probs[position].astype(np.float64)), strict=True)
    return {int(token): float(mass) for token, mass in pairs if token >= 0}


def reference_row(source: TopK, shared: SharedText, position: int, vocabulary: np.ndarray) -> dict[int, float] | None:
    """Gold-consistent projection at one position, before truncation, as its definition reads; None: no distribution."""
    pivot, gold_rows = shared.pivot, shared.source
    start, end = int(pivot.starts[position]), int(pivot.ends[position])
    gold, at_end = int(pivot.labels[position]), bool(pivot.is_end_of_turn[position])
    candidates = [row for row in range(len(gold_rows.labels)) if gold_rows.starts[row] <= start]
    if not candidates:
        return None
    row = candidates[-1]
    inside = int(start - gold_rows.starts[row])
    if bool(gold_rows.is_end_of_turn[row]) != at_end or (inside and start >= gold_rows.ends[row]):
        return None
    last = row
    while gold_rows.ends[last] < end:
        if last + 1 == len(gold_rows.labels) or gold_rows.starts[last + 1] != gold_rows.ends[last]:
            return None
        last += 1
    values = shared.source_bytes.values
    text = shared.text.tobytes()
    label = values[gold_rows.labels[row]]
    lead = shared.pivot_bytes.values[gold][: pivot.leads[position]]
    source_lead = label[: gold_rows.leads[row]]
    whole = not inside and lead == source_lead
    read = 0 if whole else len(source_lead) + inside
    masses: dict[int, float] = defaultdict(float)

    def entries(of: int) -> list[tuple[int, float]]:
        stored = list(row_masses(source, of).items())
        label_id = int(gold_rows.labels[of])
        if label_id not in dict(stored):
            stored.append((label_id, float(np.exp(np.float64(source.label_log_probs[of])))))
        return stored

    def is_special(token: int) -> bool:
        return bool(shared.source_bytes.is_special[token])

    first = entries(row)
    scale, landed = 1.0, 0
    if inside:
        first = [
            (token, mass)
            for token, mass in first
            if token == gold_rows.labels[row]
            or (not is_special(token) and values[token].startswith(label[:read]) and len(values[token]) > read)
        ]
        scale = 1.0 / sum(mass for _, mass in first)
    stored_tokens = set(source.token_ids[row].tolist())
    for token, mass in first:
        mass *= scale
        is_stored = token in stored_tokens
        if token == gold_rows.labels[row]:
            landed += is_stored
            if last == row:
                masses[gold] += mass
            continue
        if is_special(token):
            if vocabulary[token] >= 0:
                masses[int(vocabulary[token])] += mass
                landed += is_stored
            continue
        value = values[token]
        prefix = source_lead if whole else label[:read]
        if value.startswith(prefix):
            rest = value[len(prefix) :]
            if not at_end and len(rest) >= end - start and text[start : start + len(rest)] == rest:
                masses[gold] += mass
                landed += is_stored
                continue
        elif not whole:
            continue
        target = int(vocabulary[token]) if whole else longest_prefix(shared.pivot_bytes, lead + value[read:])
        if target >= 0:
            masses[target] += mass
            landed += is_stored
    path = scale * float(np.exp(np.float64(source.label_log_probs[row])))
    consumed = (label if whole else lead + label[read:]) if last > row else b""
    for level in range(row + 1, last + 1):
        left = 1.0
        for token, mass in entries(level):
            value = values[token]
            if is_special(token):
                continue
            if token == gold_rows.labels[level]:
                left -= mass
                if level == last:
                    masses[gold] += path * mass
                continue
            begin = int(gold_rows.starts[level])
            if len(value) >= end - begin and text[begin : begin + len(value)] == value:
                target = gold
            else:
                target = longest_prefix(shared.pivot_bytes, consumed + value)
            if target >= 0:
                left -= mass
                masses[target] += path * mass
        rest_token = longest_prefix(shared.pivot_bytes, consumed)
        if left > 1e-12 and rest_token >= 0:
            masses[rest_token] += path * left
        path *= float(np.exp(np.float64(source.label_log_probs[level])))
        consumed += values[gold_rows.labels[level]]
    return dict(masses) if landed else None
