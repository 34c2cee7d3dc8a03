"""Which dialogues each step takes, and what stops a run."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from fusion_core.distributions import TopK
from fusion_core.errors import ShardError, TrainingError
from fusion_core.shards import Shard, write_shard
from fusion_core.training.data import FusedShards, load_batch
from fusion_core.training.metrics import TrainingHistory
from fusion_core.training.plan import BatchPlan, packed_groups, padded_groups, shuffled_by_window, starts_by_tokens
from tests.fusion_core.training_fixtures import fused_shard, random_dialogues, response_positions, settings, train


def labelled(dialogues: list[np.ndarray], top_k: int = 3) -> TopK:
    """Distributions whose first entry is the gold token."""
    labels = np.concatenate([ids[response_positions(ids) + 1] for ids in dialogues])
    token_ids = np.stack([labels, *([np.full_like(labels, -1)] * (top_k - 1))], 1)
    log_probs = np.where(token_ids < 0, -np.inf, -0.5).astype(np.float32)
    splits = np.cumsum([0] + [len(response_positions(ids)) for ids in dialogues]).astype(np.int64)
    return TopK(token_ids, log_probs, log_probs[:, 0], splits)


@pytest.fixture
def data(tmp_path) -> FusedShards:
    dialogues = random_dialogues(50, seed=4)
    paths = []
    for number, start in enumerate(range(0, 50, 10)):
        part = dialogues[start : start + 10]
        paths.append(tmp_path / f"{number}.parquet")
        write_shard(paths[-1], fused_shard(part, labelled(part), start))
    return FusedShards(paths)


def plan_of(data: FusedShards, **changes) -> BatchPlan:
    batch = {} if "batch_tokens" in changes else {"batch_dialogues": 8}
    return BatchPlan(data.index, **{"epochs": 2, "micro_batch_tokens": 100, "seed": 3, **batch, **changes})


def test_every_epoch_takes_every_dialogue_once(data):
    plan = plan_of(data)
    rows = np.concatenate([plan.rows(step) for step in range(plan.steps)])
    assert plan.steps == 13 and len(rows) == 100
    for epoch in (rows[:50], rows[50:]):
        assert sorted(epoch) == list(range(50))
    assert not np.array_equal(rows[:50], rows[50:])
    assert not np.array_equal(rows[:50], plan_of(data, seed=4).rows(0))


@pytest.mark.parametrize("batch_tokens", [1, 30, 150, 10**6])
def test_steps_of_tokens_take_the_same_dialogues_as_long_as_they_fit(data, batch_tokens):
    plan = plan_of(data, batch_tokens=batch_tokens)
    steps = [plan.rows(step) for step in range(plan.steps)]
    assert np.array_equal(np.concatenate(steps), np.concatenate([plan_of(data).rows(step) for step in range(13)]))
    lengths = [data.index[rows, 2] for rows in steps]
    assert all(len(step) == 1 or step.sum() <= batch_tokens for step in lengths)
    assert all(step.sum() + after[0] > batch_tokens for step, after in pairwise(lengths))
    shared = plan_of(data, batch_tokens=batch_tokens, processes=3)
    assert all(np.array_equal(shared.rows(step), rows) for step, rows in enumerate(steps))


def test_steps_of_tokens_worked_by_hand():
    # The 3 and the 1 share a step; the 2 of the next epoch has no room beside the 9, which is more than a step takes.
    assert starts_by_tokens(iter([np.array([2, 2, 3, 1]), np.array([2, 9, 1])]), 4).tolist() == [0, 2, 4, 5, 6]


def test_shuffling_reads_two_shards_at_a_time():
    shard_of_row = np.repeat(np.arange(6), 10)
    order = shard_of_row[shuffled_by_window(shard_of_row, seed=0, epoch=0)]
    assert [len(set(order[start : start + 20])) for start in (0, 20, 40)] == [2, 2, 2]
    assert not np.array_equal(order, np.sort(order))


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_share_a_step_without_overlap_and_keep_to_the_budget(data, processes):
    plan = plan_of(data, processes=processes)
    for step in range(plan.steps):
        shares = [plan.micro_batches(step, process) for process in range(processes)]
        assert len({len(share) for share in shares}) == 1
        taken = [row for share in shares for group in share for row in group]
        assert sorted(taken) == sorted(plan.rows(step))
        for share in shares:
            for group in share:
                lengths = data.index[group, 2]
                assert len(group) <= 1 or lengths.max() * len(group) <= 100


def test_a_batch_holds_each_positions_label_and_distribution(data):
    dialogues = random_dialogues(50, seed=4)
    plan = plan_of(data, epochs=1)
    seen = 0
    for step in range(plan.steps):
        batch = load_batch(data, plan, step, 0, pad_token_id=0)
        assert batch.positions == sum(len(part.labels) for part in batch.micro_batches)
        for part in batch.micro_batches:
            labels_in_text = part.input_ids.flatten()[part.rows + 1]
            assert (part.labels == labels_in_text).all()
            # The first entry was made the gold token.
            assert (part.token_ids[:, 0] == part.labels).all()
        seen += batch.positions
        ids = [f"dialogue{row:04d}" for row in plan.rows(step)]
        assert list(batch.dialogue_ids) == ids
        assert batch.tokens == sum(len(dialogues[row]) for row in plan.rows(step))
    assert seen == sum(len(response_positions(ids)) for ids in dialogues)


def test_padded_groups_compute_least():
    lengths = [100, 60, 58, 10, 9, 9]

    def cost(cuts):
        edges = [0, *cuts, len(lengths)]
        groups = [range(start, stop) for start, stop in pairwise(edges)]
        if any(len(group) > 1 and len(group) * lengths[group[0]] > 150 for group in groups):
            return np.inf, groups
        return sum(len(group) * lengths[group[0]] + 512 for group in groups), groups

    every = [cuts for size in range(6) for cuts in combinations(range(1, 6), size)]
    least = min((cost(cuts) for cuts in every), key=lambda pair: pair[0])
    groups = padded_groups(lengths, 150)
    assert cost([group[0] for group in groups[1:]])[0] == least[0]
    assert groups == [[0], [1, 2], [3, 4, 5]]


def test_packed_groups_fill_the_budget():
    assert packed_groups([90, 60, 50, 40, 10, 5], 100) == [[0, 4], [1, 3], [2, 5]]
    assert packed_groups([300, 20], 100) == [[0], [1]]


def test_packed_dialogues_keep_their_own_positions_and_labels(data):
    rows = [3, 1, 7]
    batch = data.micro_batch(rows, 0, packed=True)
    dialogues = random_dialogues(50, seed=4)
    assert batch.input_ids[0].tolist() == [int(token) for row in rows for token in dialogues[row]]
    assert batch.position_ids[0].tolist() == [place for row in rows for place in range(len(dialogues[row]))]
    assert (batch.labels == batch.input_ids[0, batch.rows + 1]).all()
    assert (batch.token_ids[:, 0] == batch.labels).all()


def test_few_shards_are_in_memory(data):
    plan = plan_of(data)
    for step in range(plan.steps):
        load_batch(data, plan, step, 0, pad_token_id=0)
        assert len(data._cache) <= 4


def test_shards_without_inputs_or_positions_are_named(tmp_path):
    dialogues = random_dialogues(3)
    whole = fused_shard(dialogues, labelled(dialogues))
    extracted = Shard(whole.top_k, whole.dialogue_ids, whole.domains, whole.response_bytes, whole.metadata)
    write_shard(tmp_path / "extracted.parquet", extracted)
    with pytest.raises(ShardError, match=r"extracted\.parquet carries no training inputs"):
        FusedShards([tmp_path / "extracted.parquet"])
    with pytest.raises(TrainingError, match="None of the 0 fused shards"):
        FusedShards([])


def test_dialogues_without_positions_are_left_out(tmp_path):
    dialogues = random_dialogues(4)
    dialogues[1] = np.array([5], dtype=np.int32)
    write_shard(tmp_path / "0.parquet", fused_shard(dialogues, labelled(dialogues)))
    assert FusedShards([tmp_path / "0.parquet"]).index[:, 1].tolist() == [0, 2, 3]


def test_nan_stops_the_run_and_names_step_and_dialogues(pivot, tmp_path):
    dialogues = random_dialogues(12)
    top_k = labelled(dialogues)
    top_k.log_probs[top_k.row_splits[7], 0] = np.nan
    write_shard(tmp_path / "0.parquet", fused_shard(dialogues, top_k))
    data = FusedShards([tmp_path / "0.parquet"])
    plan = BatchPlan(data.index, epochs=2, batch_dialogues=6, micro_batch_tokens=96, seed=0)
    step = next(step for step in range(plan.steps) if 7 in plan.rows(step))
    with pytest.raises(TrainingError, match=rf"at step {step + 1} \(loss nan.*dialogue0007"):
        train(pivot, [tmp_path / "0.parquet"], tmp_path, settings())
    assert not (tmp_path / "target").exists()


def test_a_jump_of_the_loss_stops_the_run():
    history = TrainingHistory(10)
    for step in range(1, 40):
        history.stop_if_diverging(step, 2.0 + 0.1 * (step % 3), 1.0, ("a",), 5.0)
    with pytest.raises(TrainingError, match=r"at step 40 \(loss 12, gradient norm 3, dialogues a, b\).*5 times"):
        history.stop_if_diverging(40, 12.0, 3.0, ("a", "b"), 5.0)


def test_another_runs_checkpoint_is_refused(pivot, shards, tmp_path):
    train(pivot, shards, tmp_path, settings())
    with pytest.raises(TrainingError, match="another learning_rate, lm_weight"):
        train(pivot, shards, tmp_path, settings(learning_rate=1e-3), lm_weight=0.4)
    # What changes speed alone is free to change.
    train(pivot, shards, tmp_path, settings(micro_batch_tokens=500))


def test_sampled_distributions_are_importance_weights(pivot, tmp_path):
    dialogues = random_dialogues(8)
    top_k = labelled(dialogues)
    paths = []
    for truncation in ("top_k", "sampled"):
        paths.append(tmp_path / f"{truncation}.parquet")
        write_shard(paths[-1], fused_shard(dialogues, top_k, truncation=truncation))
    config = settings(epochs=1, batch_dialogues=8, window_steps=1)
    losses = [train(pivot, [path], tmp_path / path.stem, config).windows[0].fusion_loss for path in paths]
    # Each row has one entry of probability exp(-0.5): renormalised it counts whole, as a weight for what it is.
    assert losses[1] == pytest.approx(np.exp(-0.5) * losses[0], rel=1e-4)
    with pytest.raises(TrainingError, match="Some fused shards hold sampled"):
        train(pivot, paths, tmp_path / "both", config)
    for changes in ({"tail": "bucket"}, {"temperature": 2.0}):
        with pytest.raises(TrainingError, match="Sampled distributions have no"):
            train(pivot, paths[1:], tmp_path / "refused", settings(**changes))


def test_running_out_of_memory_names_the_batch_and_what_to_lower(pivot, shards, tmp_path, monkeypatch):
    def no_memory(*arguments, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr("fusion_core.training.model.fusion_cross_entropy", no_memory)
    with pytest.raises(TrainingError, match=r"\d dialogues of 39 tokens.*`micro_batch_tokens`"):
        train(pivot, shards, tmp_path, settings())
