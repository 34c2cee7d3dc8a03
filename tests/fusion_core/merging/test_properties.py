"""What must hold for any checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.merging import MergeReport, MergeSpec, merge_checkpoints
from tests.fusion_core.merging.checkpoints import Tensors, load, save_all

SHAPES = {"model.layers.0.mlp.up_proj.weight": (5, 3), "model.layers.1.mlp.up_proj.weight": (5, 3), "norm": (4,)}
VARM = st.builds(
    MergeSpec,
    granularity=st.sampled_from(["model", "layer", "module", "matrix", "parameter"]),
    variation=st.sampled_from(["square", "abs"]),
)
SOFTMAX = st.builds(
    MergeSpec,
    granularity=st.sampled_from(["model", "layer", "matrix"]),
    weighting=st.just("softmax"),
    temperature=st.floats(0.1, 10),
)
# Methods whose weights are shares and whose result lies between the targets.
SHARES = st.one_of(VARM, SOFTMAX, st.builds(MergeSpec, method=st.sampled_from(["linear", "sce"])))
# Settings of the other methods that drop nothing and scale nothing.
GENTLE = st.builds(MergeSpec, method=st.sampled_from(["slerp", "ties", "task_arithmetic", "dare"]))
MODERATE = settings(max_examples=25, deadline=None)


def tensors(seed: int) -> Tensors:
    generator = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(generator.standard_normal(shape).astype("float32")) for name, shape in SHAPES.items()
    }


def merge(pivot: Tensors, targets: list[Tensors], spec: MergeSpec) -> tuple[Tensors, MergeReport]:
    with tempfile.TemporaryDirectory() as folder:
        report = merge_checkpoints(*save_all(Path(folder), pivot, targets), Path(folder) / "merged", spec)
        return load(Path(folder) / "merged"), report


@MODERATE
@given(spec=SHARES, seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True))
def test_weights_sum_to_one(spec: MergeSpec, seeds: list[int]) -> None:
    _, report = merge(tensors(10**7), [tensors(seed) for seed in seeds], spec)
    assert report.weights.keys() == SHAPES.keys()
    for weights in report.weights.values():
        assert len(weights) == len(seeds)
        assert abs(sum(weights) - 1) < 1e-5 and min(weights) >= 0


@MODERATE
@given(spec=st.one_of(SHARES, GENTLE), seed=st.integers(0, 10**6))
def test_one_target_gives_that_target_back(spec: MergeSpec, seed: int) -> None:
    merged, _ = merge(tensors(10**7), [tensors(seed)], spec)
    torch.testing.assert_close(merged, tensors(seed), rtol=1e-6, atol=1e-6)


@MODERATE
@given(
    spec=st.one_of(SHARES, st.builds(MergeSpec, method=st.sampled_from(["slerp", "ties"]))),
    seed=st.integers(0, 10**6),
    count=st.integers(2, 4),
)
def test_identical_targets_give_themselves_back(spec: MergeSpec, seed: int, count: int) -> None:
    merged, _ = merge(tensors(10**7), [tensors(seed)] * count, spec)
    torch.testing.assert_close(merged, tensors(seed), rtol=1e-6, atol=1e-6)


@MODERATE
@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 10**6), count=st.integers(1, 3))
def test_sce_gives_identical_targets_back_at_any_share(share: float, seed: int, count: int) -> None:
    spec = MergeSpec(method="sce", select_top_k=share)
    merged, _ = merge(tensors(10**7), [tensors(seed)] * count, spec)
    torch.testing.assert_close(merged, tensors(seed), rtol=1e-6, atol=1e-6)


@MODERATE
@given(
    spec=st.one_of(SHARES, st.builds(MergeSpec, method=st.just("ties"), density=st.floats(0.05, 1.0))),
    order=st.permutations(range(4)),
    seed=st.integers(0, 10**6),
)
def test_permuting_targets_permutes_weights(spec: MergeSpec, order: list[int], seed: int) -> None:
    targets = [tensors(seed + number) for number in range(4)]
    merged, report = merge(tensors(10**7), targets, spec)
    permuted, permuted_report = merge(tensors(10**7), [targets[number] for number in order], spec)
    torch.testing.assert_close(permuted, merged, rtol=1e-5, atol=1e-5)
    for name, weights in report.weights.items():
        np.testing.assert_allclose(permuted_report.weights[name], [weights[number] for number in order], rtol=1e-5)


@MODERATE
@given(spec=st.one_of(VARM, SOFTMAX), seed=st.integers(0, 10**6), power=st.integers(-8, 8))
def test_scaling_all_deltas_leaves_varm_weights(spec: MergeSpec, seed: int, power: int) -> None:
    # A pivot of zeros and a power of two, so that storing the targets rounds nothing.
    pivot = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    targets = [tensors(seed), tensors(seed + 1), tensors(seed + 2)]
    scaled = [{name: tensor * 2.0**power for name, tensor in target.items()} for target in targets]
    _, report = merge(pivot, targets, spec)
    _, scaled_report = merge(pivot, scaled, spec)
    for name, weights in report.weights.items():
        np.testing.assert_allclose(scaled_report.weights[name], weights, rtol=1e-5)
