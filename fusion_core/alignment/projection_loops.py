"""The compiled loops of projection: over whole rows, and over the positions of a known text.

Legend as in ``projection_kernel``, which holds what one source row gives to one pivot position.
"""

from __future__ import annotations

import numpy as np

from fusion_core.alignment.compiled import compiled
from fusion_core.alignment.gold_tokens import end_of_chain, first_of_chain, has_characters_of, last_row
from fusion_core.alignment.projection_kernel import (
    BOUNDARY,
    CONDITIONED,
    NO_ENTRY,
    NOT_COVERED,
    TINY,
    Scratch,
    View,
    add_mass,
    begins_with,
    clear,
    read_first_row,
    read_next_rows,
    write_row,
)
from fusion_core.alignment.trie import ROOT, walk


@compiled
def project_rows(rows, distributions, vocabulary, pivot_size, keep_first, out_ids, out_log_probs, out_labels):
    """Map whole rows through the vocabulary alone; rows of -1 stay empty. Returns stored and kept mass."""
    stored, kept = np.zeros(len(rows)), np.zeros(len(rows))
    size = max(pivot_size, 1)
    scratch = Scratch(np.full(size, -1, np.int32), np.empty(size, np.int32), np.empty(size, np.float64))
    for position in range(len(rows)):
        row = rows[position]
        if row < 0:
            continue
        count = 0
        for entry in range(distributions.token_ids.shape[1]):
            token = distributions.token_ids[row, entry]
            if token < 0:
                continue
            mass = np.exp(np.float64(distributions.log_probs[row, entry]))
            stored[position] += mass
            mapped = vocabulary[token] if token < len(vocabulary) else -1
            if mapped >= 0:
                count = add_mass(scratch, count, mapped, mass, keep_first)
        # A row of its own entries alone never has too many.
        kept[position] = write_row(scratch, count, keep_first, out_ids[position], out_log_probs[position], -1, -1.0)
        out_labels[position] = distributions.label_log_probs[row]
    return stored, kept


@compiled
def _copy_row(distributions, row, vocabulary, scratch, keep_first, out_ids, out_log_probs):
    """Copy a row as it is, but for control tokens that the pivot's template has others for; return both masses."""
    total, is_itself = 0.0, True
    for entry in range(len(out_ids)):
        token = distributions.token_ids[row, entry]
        total += np.exp(np.float64(distributions.log_probs[row, entry]))
        is_itself = is_itself and (token < 0 or token >= len(vocabulary) or vocabulary[token] == token)
    if is_itself:
        out_ids[:], out_log_probs[:] = distributions.token_ids[row], distributions.log_probs[row]
        return total, total
    count = 0
    for entry in range(len(out_ids)):
        token = distributions.token_ids[row, entry]
        mapped = vocabulary[token] if 0 <= token < len(vocabulary) else -1
        if mapped >= 0:
            mass = np.exp(np.float64(distributions.log_probs[row, entry]))
            count = add_mass(scratch, count, mapped, mass, keep_first)
    # A row of its own entries alone never has too many.
    return total, write_row(scratch, count, keep_first, out_ids, out_log_probs, -1, -1.0)


@compiled
def project_text(
    rows, bytes_read, distributions, text, pivot, source, pivot_strings, strings, vocabulary, trie, same_tokenizer,
    condition, gold_consistent, keep_first, draws, out_ids, out_log_probs, out_labels,
):  # fmt: skip
    """Project over a known text; returns kinds, stored and kept mass."""
    kinds = np.full(len(rows), NOT_COVERED, np.uint8)
    stored, kept = np.zeros(len(rows)), np.zeros(len(rows))
    size = len(pivot_strings.special)
    scratch = Scratch(np.full(size, -1, np.int32), np.empty(size, np.int32), np.empty(size, np.float64))
    for position in range(len(rows)):
        row = rows[position]
        if row < 0 or source.is_end[row] != pivot.is_end[position]:
            continue
        start, gold = pivot.starts[position], pivot.labels[position]
        end = end_of_chain(position, pivot, pivot_strings)
        inside = bytes_read[position] > 0
        if not inside:
            row = first_of_chain(row, source, strings)
        last = last_row(row, end, source)
        if last < 0:
            continue
        if first_of_chain(position, pivot, pivot_strings) < position:
            # The first token of these characters has taken what the source says of them; the others follow from it.
            kinds[position], out_labels[position] = NO_ENTRY, 0.0
            continue
        label = source.labels[row]
        label_begin, label_end = strings.offsets[label], strings.offsets[label + 1]
        gold_begin = pivot_strings.offsets[gold]
        lead, source_lead = np.int64(pivot.leads[position]), np.int64(source.leads[row])
        same_lead = not inside and lead == source_lead and begins_with(
            strings.buffer, label_begin, label_end, pivot_strings.buffer, gold_begin, lead
        )  # fmt: skip
        if same_lead and same_tokenizer and label == gold and source.ends[row] == end:
            stored[position], kept[position] = _copy_row(
                distributions, row, vocabulary, scratch, keep_first, out_ids[position], out_log_probs[position]
            )
            out_labels[position], kinds[position] = distributions.label_log_probs[row], BOUNDARY
            continue
        if inside and not has_characters_of(strings, label, source_lead, text, source.starts[row], source.ends[row]):
            # The tokenizer changed the text here, so its bytes cannot be read up to the pivot's boundary.
            kinds[position] = NO_ENTRY
            out_labels[position] = distributions.label_log_probs[row + 1 : last + 1].sum()
            continue
        if same_lead:
            # Both first tokens carry the same bytes of the template: whole tokens speak about whole tokens.
            view = View(np.int64(0), lead, False, True, np.int64(ROOT), np.int64(-1))
        else:
            read = source_lead + bytes_read[position]
            node, best = walk(trie, ROOT, -1, pivot_strings.buffer, gold_begin, gold_begin + lead)
            view = View(read, read, inside, False, np.int64(node), np.int64(best))
        count, gold_mass, landed, looked_at, scale = read_first_row(
            distributions, row, label, strings, trie, vocabulary, view, text, start, end, gold, pivot.is_end[position],
            last == row, scratch, keep_first, not gold_consistent,
        )  # fmt: skip
        if last > row:
            node, best = walk(trie, view.node, view.best, strings.buffer, label_begin + view.read, label_end)
            path = scale * np.exp(np.float64(distributions.label_log_probs[row]))
            count, further = read_next_rows(
                distributions, row + 1, last, path, source, strings, trie, node, best, text, end, gold, count,
                scratch, keep_first, not gold_consistent, draws[position] >= 0.0,
            )  # fmt: skip
            gold_mass += further
        out_labels[position] = np.log(max(gold_mass, TINY))
        if landed == 0 or (inside and not condition):
            clear(scratch, count)
            kinds[position] = NO_ENTRY
            continue
        kinds[position] = CONDITIONED if inside else BOUNDARY
        stored[position] = looked_at
        kept[position] = write_row(
            scratch, count, keep_first, out_ids[position], out_log_probs[position], gold if gold_consistent else -1,
            draws[position],
        )  # fmt: skip
    return kinds, stored, kept
