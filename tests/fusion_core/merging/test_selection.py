"""Exact selection of the largest scores, ties and all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_core.merging import selection
from fusion_core.merging.checkpoint import TensorEntry
from fusion_core.merging.selection import select_largest, share_of
from fusion_core.merging.values import BLOCK, CPU_CHUNK, TensorValues


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def values_of(deltas: np.ndarray, pool: Executor) -> TensorValues:
    stored = np.concatenate([np.zeros_like(deltas[:1]), deltas]).astype(np.float32)
    entry = TensorEntry("w", "F32", deltas.shape[1:], Path("unused"), 0, stored[0].nbytes)
    return TensorValues(entry, stored, torch.device("cpu"), pool)


def selected(values: TensorValues, keeps: list[int]) -> np.ndarray:
    cutoffs = select_largest(values, torch.abs, keeps)
    masks = []
    for start, stop in values.blocks:
        for first, last in values.chunks(start, stop):
            scores_TN = values.pivot_and_deltas(first, last)[1].abs()
            pairs = zip(cutoffs, scores_TN, strict=True)
            masks.append(torch.stack([cutoff.mask(scores_N, first) for cutoff, scores_N in pairs]))
    return torch.cat(masks, dim=1).bool().numpy()


def expected(deltas: np.ndarray, keeps: list[int]) -> np.ndarray:
    masks = np.zeros(deltas.shape, dtype=bool)
    for mask, delta, keep in zip(masks, deltas, keeps, strict=True):
        mask[np.argsort(-np.abs(delta), kind="stable")[:keep]] = True
    return masks


@pytest.mark.parametrize("count", [1, 2, 1000, CPU_CHUNK, 3 * CPU_CHUNK + 7, BLOCK + 5])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.99, 1.0])
def test_selects_what_a_stable_sort_selects(count: int, share: float, pool: Executor) -> None:
    deltas = np.random.default_rng(0).standard_normal((2, count)).astype(np.float32)
    keeps = [share_of(count, share), share_of(count, share / 2)]
    np.testing.assert_array_equal(selected(values_of(deltas, pool), keeps), expected(deltas, keeps))


@pytest.mark.parametrize("levels", [1, 2, 5, 300])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
def test_ties_go_to_the_first_entries(levels: int, share: float, pool: Executor) -> None:
    # Few different values, as the deltas of a bf16 model have, and long runs of equal ones.
    generator = np.random.default_rng(levels)
    deltas = np.sort(generator.integers(0, levels, (2, 2 * CPU_CHUNK + 11)), axis=1)[:, ::-1].astype(np.float32)
    deltas[1] = generator.permutation(deltas[1])
    keeps = [share_of(deltas.shape[1], share)] * 2
    np.testing.assert_array_equal(selected(values_of(deltas, pool), keeps), expected(deltas, keeps))


def test_a_misleading_sample_changes_nothing(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SAMPLE", 16)
    monkeypatch.setattr(selection, "DEVIATIONS", 0.01)
    deltas = np.random.default_rng(1).standard_normal((3, CPU_CHUNK + 100)).astype(np.float32)
    keeps = [10, 1000, CPU_CHUNK - 2000]
    np.testing.assert_array_equal(selected(values_of(deltas, pool), keeps), expected(deltas, keeps))


def test_shares_of_round_numbers_are_round() -> None:
    assert share_of(100, 0.29) == 29
    assert share_of(10, 0.05) == 1
    assert share_of(15, 0.1) == 1
    assert share_of(7, 1.0) == 7
