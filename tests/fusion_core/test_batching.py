"""Batches by token budget."""

from __future__ import annotations

import json

import numpy as np

from fusion_core.batching import few_lengths, pad_right, token_batches


def padding_share(lengths, batches):
    read = sum(len(batch) * lengths[batch].max() for batch in batches)
    return 1 - lengths.sum() / read


def test_every_sequence_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(0, 500, 300)
    batches = token_batches(lengths, 1000, window=64)
    assert sorted(np.concatenate(batches)) == np.flatnonzero(lengths).tolist()
    assert all(len(batch) * lengths[batch].max() <= 1000 for batch in batches)


def test_a_sequence_above_the_budget_is_alone():
    assert [batch.tolist() for batch in token_batches([50, 500, 51], 120)] == [[1], [2, 0]]


def test_the_longest_come_first_and_equal_ones_in_order():
    assert [batch.tolist() for batch in token_batches([29, 31, 31, 30], 62)] == [[1, 2], [3, 0]]


def test_windows_are_not_mixed():
    assert [batch.tolist() for batch in token_batches([98, 99, 99, 98], 200, window=2)] == [[1, 0], [2, 3]]


def test_little_padding_on_real_dialogues(shared_folder):
    path = shared_folder / "data" / "oasst100" / "oasst_en_100_paths.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # Four characters are about one token.
    lengths = np.array([sum(len(turn["content"]) for turn in row["messages"]) // 4 for row in rows]).clip(1, 2048)
    assert padding_share(lengths, token_batches(lengths, 8192)) < 0.05


def test_no_sequences():
    assert token_batches([], 10) == [] and token_batches([0, 0], 10) == []


def test_padding_stands_on_the_right():
    padded = pad_right([np.array([1, 2], np.int32), np.array([3], np.int32)], fill=9)
    assert padded.dtype == np.int64 and padded.tolist() == [[1, 2], [3, 9]]


def test_a_batch_ends_before_it_is_padded_much():
    # A quarter of the budget is 100: two of 100 tokens may be together, the short ones wait for the next batch.
    assert [batch.tolist() for batch in token_batches([100, 100, 10, 10], 400)] == [[0, 1], [2, 3]]


def test_packed_batches_are_filled_to_the_budget():
    lengths = [3, 9, 4, 0, 5, 1, 30]
    batches = token_batches(lengths, 12, packed=True)
    assert [batch.tolist() for batch in batches] == [[6], [1], [4, 2, 0], [5]]


def test_lengths_are_rounded_up_by_a_32nd_at_most_and_to_few():
    lengths = np.arange(4097)
    few = few_lengths(lengths)
    assert (few >= lengths).all()
    assert (few - lengths <= lengths / 32).all()
    assert len(set(few.tolist())) == 64 + 32 * 6 + 1
    assert few_lengths(few).tolist() == few.tolist()


def test_batches_of_many_shards_have_few_shapes_and_hardly_more_padding():
    draw = np.random.default_rng(0)
    shapes: dict[bool, set[tuple[int, int]]] = {False: set(), True: set()}
    read = dict.fromkeys(shapes, 0)
    for _ in range(100):
        lengths = draw.lognormal(5.3, 0.8, 2048).clip(8, 2048).astype(int)
        for few_shapes in shapes:
            padded = few_lengths(lengths) if few_shapes else lengths
            batches = token_batches(lengths, 8192, few_shapes=few_shapes)
            assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
            assert all(len(batch) * padded[batch[0]] <= 8192 for batch in batches)
            shapes[few_shapes] |= {(len(batch), int(padded[batch[0]])) for batch in batches}
            read[few_shapes] += sum(len(batch) * int(padded[batch[0]]) for batch in batches)
    assert len(shapes[False]) > 2000 and len(shapes[True]) < 600
    assert read[True] < 1.02 * read[False]
