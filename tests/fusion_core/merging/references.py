"""Every merge method written once more, densely, in float64 and without the engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.granularity import group_of

# Pivot [N] and targets [T, N], float64, to merged [N].
Arrays = dict[str, np.ndarray]


def varm(spec: MergeSpec, pivot: Arrays, targets: list[Arrays]) -> Arrays:
    power = {"square": 2, "abs": 1}[spec.variation]
    changes = {name: [np.abs(target[name] - pivot[name]) ** power for target in targets] for name in pivot}
    if spec.granularity == "parameter":
        merged = {}
        for name, change in changes.items():
            total = np.sum(change, axis=0)
            weights = [np.where(total > 0, c / np.where(total > 0, total, 1), 1 / len(targets)) for c in change]
            merged[name] = sum(w * target[name] for w, target in zip(weights, targets, strict=True))
        return merged
    merged = {}
    for name in pivot:
        group = [other for other in pivot if group_of(other, spec.granularity) == group_of(name, spec.granularity)]
        means = np.array(
            [np.concatenate([changes[other][j].ravel() for other in group]).mean() for j in range(len(targets))]
        )
        if means.sum() == 0:
            weights = np.full(len(targets), 1 / len(targets))
        elif spec.weighting == "softmax":
            exponentials = np.exp(means / (spec.temperature * means.mean()))
            weights = exponentials / exponentials.sum()
        else:
            weights = means / means.sum()
        merged[name] = sum(w * target[name] for w, target in zip(weights, targets, strict=True))
    return merged


def each_tensor(merge: Callable[..., np.ndarray]) -> Callable[[MergeSpec, Arrays, list[Arrays]], Arrays]:
    def merge_all(spec: MergeSpec, pivot: Arrays, targets: list[Arrays]) -> Arrays:
        return {
            name: merge(spec, value.ravel(), np.stack([target[name].ravel() for target in targets])).reshape(
                value.shape
            )
            for name, value in pivot.items()
        }

    return merge_all


@each_tensor
def linear(spec, pivot, targets):
    return np.average(targets, axis=0, weights=spec.weights)


@each_tensor
def task_arithmetic(spec, pivot, targets):
    weights = spec.weights or [1.0] * len(targets)
    return pivot + spec.scaling_coefficient * sum(w * (t - pivot) for w, t in zip(weights, targets, strict=True))


@each_tensor
def slerp(spec, pivot, targets):
    weights = (1 - spec.t, spec.t) if spec.t is not None else (spec.weights or [1.0] * len(targets))
    merged, taken = targets[0], weights[0]
    for weight, target in zip(weights[1:], targets[1:], strict=True):
        taken += weight
        t = weight / taken
        cosine = merged @ target / np.linalg.norm(merged) / np.linalg.norm(target)
        if abs(cosine) > 0.9995:
            merged = (1 - t) * merged + t * target
        else:
            angle = np.arccos(cosine)
            merged = (np.sin((1 - t) * angle) * merged + np.sin(t * angle) * target) / np.sin(angle)
    return merged


@each_tensor
def ties(spec, pivot, targets):
    deltas = targets - pivot
    weights = np.array(spec.weights or [1.0] * len(targets))
    keep = max(1, int(round(spec.density * len(pivot), 6)))
    for delta in deltas:
        order = np.argsort(-np.abs(delta), kind="stable")
        delta[order[keep:]] = 0
    return pivot + spec.scaling_coefficient * _elect(deltas, weights)


def _elect(deltas, weights):
    weighted = deltas * weights[:, None]
    agree = np.sign(weighted) == np.sign(weighted.sum(axis=0))
    agree &= weighted != 0
    divisor = (weights[:, None] * agree).sum(axis=0)
    return (weighted * agree).sum(axis=0) / np.where(divisor == 0, 1, divisor)


@each_tensor
def sce(spec, pivot, targets):
    deltas = targets - pivot
    keep = max(1, int(round(spec.select_top_k * len(pivot), 6)))
    variance = deltas.var(axis=0)
    selected = np.zeros(len(pivot), dtype=bool)
    selected[np.argsort(-variance, kind="stable")[:keep]] = True
    deltas = deltas * selected
    squares = (deltas**2).sum(axis=1)
    weights = squares / squares.sum() if squares.sum() > 0 else np.full(len(targets), 1 / len(targets))
    direction = np.sign(deltas.sum(axis=0))
    kept = weights[:, None] * ((np.sign(deltas) == direction) | (direction == 0)) * (deltas != 0)
    return pivot + (kept * deltas).sum(axis=0) / np.where(kept.sum(axis=0) == 0, 1, kept.sum(axis=0))


METHODS = {
    "varm": varm,
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "slerp": slerp,
    "ties": ties,
    "sce": sce,
}
