"""One shard fused end to end: two tokenizers, two templates, cut and refused dialogues, coverage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusion_core.alignment import Counts, Coverage
from fusion_core.alignment.statistics import add_counts, count_aligned_pairs
from fusion_core.config import AlignmentConfig, FusionFunctionConfig
from fusion_core.distributions import TopK
from fusion_core.encoding.encoder import EncodedDialogue, Encoder
from fusion_core.errors import DialogueRefusedError, ShardError
from fusion_core.pairing import fuse_shard, pair_vocabulary
from fusion_core.shards import Shard, ShardMetadata
from tests.fusion_core.alignment.helpers import row_masses
from tests.fusion_core.chat_fixtures import (
    CHATML,
    OPENCHAT,
    byte_level_tokenizer,
    make_dialogue,
    sentencepiece_tokenizer,
)

DIALOGUES = [
    make_dialogue("hi", "the cat sat on the mat", "and", "naïve café 你好 😀 1234", domain="prose"),
    make_dialogue("code", "def add(a, b):\n    return a + b", domain="code"),
    make_dialogue("refused", "a <|eot_id|> inside", domain="prose"),
    make_dialogue("long", "the dog sat on the log and the cat sat on the mat " * 6 + "end", domain="prose"),
]


@pytest.fixture(scope="module")
def pivot_encoder() -> Encoder:
    return Encoder(byte_level_tokenizer(CHATML), 512, "pivot")


@pytest.fixture(scope="module")
def source_encoder() -> Encoder:
    return Encoder(sentencepiece_tokenizer(OPENCHAT), 512, "source")


def encode(encoder: Encoder, dialogues=DIALOGUES) -> list[EncodedDialogue | None]:
    outcomes = encoder.encode_all(dialogues)
    return [None if isinstance(outcome, DialogueRefusedError) else outcome for outcome in outcomes]


def make_shard(encoder: Encoder, gold: float, dialogues=DIALOGUES, seed: int = 0, certain: bool = False) -> Shard:
    """Distributions that give the gold token about ``gold`` and some others the rest."""
    encoded = encode(encoder, dialogues)
    counts = [0 if item is None else len(item.labels) for item in encoded]
    labels = np.concatenate([item.labels for item in encoded if item is not None])
    random = np.random.default_rng(seed)
    ids = np.full((len(labels), 4), -1, np.int32)
    log_probs = np.full((len(labels), 4), -np.inf, np.float32)
    ids[:, 0], log_probs[:, 0] = labels, 0.0 if certain else np.log(gold)
    if not certain:
        for place in (1, 2, 3):
            other = random.integers(0, len(encoder.tokenizer), len(labels))
            ids[:, place] = np.where((other == labels) | (ids == other[:, None]).any(axis=1), -1, other)
            log_probs[:, place] = np.where(ids[:, place] < 0, -np.inf, np.log((1 - gold) / (3 + place)))
    top_k = TopK(ids, log_probs, log_probs[:, 0].copy(), np.cumsum([0, *counts]).astype(np.int64))
    return Shard(
        top_k,
        [dialogue.id for dialogue in dialogues],
        [dialogue.domain for dialogue in dialogues],
        np.array([0 if item is None else item.response_bytes for item in encoded], np.int64),
        ShardMetadata("model", "dataset", 4),
    )


def run(pivot_encoder, source_encoder, pivot, source, alignment=None, fusion=None, counts=None):
    alignment, fusion = alignment or AlignmentConfig(), fusion or FusionFunctionConfig()
    vocabulary = pair_vocabulary(pivot_encoder, source_encoder, alignment, counts=counts)
    return fuse_shard(
        DIALOGUES, pivot, [source], pivot_encoder, [source_encoder], alignment, fusion, [vocabulary],
        source_names=["maths"], model_digest="fused",
    )  # fmt: skip


def test_certain_source_wins_and_makes_every_position_certain(pivot_encoder, source_encoder) -> None:
    pivot, source = make_shard(pivot_encoder, 0.4), make_shard(source_encoder, 1.0, certain=True)
    fused, coverage = run(pivot_encoder, source_encoder, pivot, source)
    labels = np.concatenate([item.labels for item in encode(pivot_encoder) if item is not None])
    assert np.array_equal(fused.top_k.token_ids[:, 0], labels)
    assert fused.top_k.log_probs[:, 0] == pytest.approx(0.0, abs=1e-6)
    total = coverage.overall("maths")
    assert total.positions == len(labels) == total.positions_won
    assert total.fallen_back == 0 and total.mass_kept == pytest.approx(1.0)
    assert total.dialogues == 4 and total.dialogues_won == 3
    assert set(coverage.sources["maths"]) == {"prose", "code"}
    assert total.boundary + total.conditioned == total.positions
    # The other way round, the pivot's tokens are the shorter ones and lie inside the source's.
    pivot, source = make_shard(source_encoder, 0.4), make_shard(pivot_encoder, 1.0, certain=True)
    fused, coverage = run(source_encoder, pivot_encoder, pivot, source)
    labels = np.concatenate([item.labels for item in encode(source_encoder) if item is not None])
    assert np.array_equal(fused.top_k.token_ids[:, 0], labels)
    assert fused.top_k.log_probs[:, 0] == pytest.approx(0.0, abs=1e-6)
    assert coverage.overall("maths").conditioned > 100 and coverage.overall("maths").fallen_back == 0


def test_fused_shard_is_all_that_training_reads(pivot_encoder, source_encoder) -> None:
    fused, _ = run(pivot_encoder, source_encoder, make_shard(pivot_encoder, 0.4), make_shard(source_encoder, 0.7))
    encoded = encode(pivot_encoder)
    assert encoded[2] is None and np.diff(fused.top_k.row_splits)[2] == 0
    assert fused.inputs is not None
    for index, item in enumerate(encoded):
        tokens = slice(*fused.inputs.input_splits[index : index + 2])
        rows = slice(*fused.top_k.row_splits[index : index + 2])
        expected = item.input_ids if item is not None else []
        assert fused.inputs.input_ids[tokens].tolist() == list(expected)
        expected = item.response_positions if item is not None else []
        assert fused.inputs.response_positions[rows].tolist() == list(expected)
    assert fused.metadata == ShardMetadata("fused", "dataset", 4)


def test_where_the_pivot_is_better_the_label_is_learnt_or_in_the_papers_way_its_own_rows(
    pivot_encoder, source_encoder
) -> None:
    pivot, source = make_shard(pivot_encoder, 0.9), make_shard(source_encoder, 0.2)
    fused, coverage = run(pivot_encoder, source_encoder, pivot, source)
    assert np.all(fused.top_k.token_ids == -1)
    assert coverage.overall("maths").positions_won == 0
    papers = FusionFunctionConfig(where_pivot_wins="distribution")
    fused, _ = run(pivot_encoder, source_encoder, pivot, source, fusion=papers)
    assert np.array_equal(fused.top_k.token_ids, pivot.top_k.token_ids)


def test_models_are_compared_per_byte_or_per_token(pivot_encoder, source_encoder) -> None:
    # The source's tokens are shorter: .6 for each of them is less for the text than .5 for each of the pivot's.
    pivot, source = make_shard(pivot_encoder, 0.5), make_shard(source_encoder, 0.6)
    _, per_byte = run(pivot_encoder, source_encoder, pivot, source)
    assert per_byte.overall("maths").dialogues_won == 0
    fusion = FusionFunctionConfig(cross_entropy_unit="token")
    _, per_token = run(pivot_encoder, source_encoder, pivot, source, fusion=fusion)
    assert per_token.overall("maths").dialogues_won == 3
    by_token = FusionFunctionConfig(level="token", cross_entropy_unit="token")
    _, each = run(pivot_encoder, source_encoder, pivot, source, fusion=by_token)
    assert each.overall("maths").positions_won == each.overall("maths").positions


def test_source_cut_early_is_compared_on_what_both_have_read(pivot_encoder) -> None:
    short = Encoder(sentencepiece_tokenizer(OPENCHAT), 120, "source")
    pivot, source = make_shard(pivot_encoder, 0.3), make_shard(short, 0.9)
    fused, coverage = run(pivot_encoder, short, pivot, source)
    prose = coverage.sources["maths"]["prose"]
    assert prose.not_covered > 50 and prose.dialogues_won == 2
    last = fused.top_k.dialogue(3)
    assert np.all(last.token_ids[-1] == -1) and last.token_ids[0, 0] >= 0


def test_the_papers_settings_work_end_to_end(pivot_encoder, source_encoder) -> None:
    pivot, source = make_shard(pivot_encoder, 0.3), make_shard(source_encoder, 0.9)
    counts = add_counts([
        count_aligned_pairs(DIALOGUES[:2], pivot_encoder, source_encoder, "dtw"),
        count_aligned_pairs(DIALOGUES[2:], pivot_encoder, source_encoder, "dtw"),
    ])  # fmt: skip
    paper = AlignmentConfig(positions="dtw", vocabulary="statistics", duplicates="first")
    fusion = FusionFunctionConfig(cross_entropy_unit="token")
    fused, coverage = run(pivot_encoder, source_encoder, pivot, source, paper, fusion, counts)
    total = coverage.overall("maths")
    assert total.dialogues_won == 3
    assert 0 < total.boundary < total.positions and total.conditioned == 0
    labels = np.concatenate([item.labels for item in encode(pivot_encoder) if item is not None])
    matched = np.flatnonzero(fused.top_k.token_ids[:, 0] >= 0)
    assert len(matched) == total.boundary
    for position in matched:
        masses = row_masses(fused.top_k, position)
        assert sum(masses.values()) == pytest.approx(1.0, abs=1e-5)
        assert next(iter(masses)) == labels[position]


def test_aligned_pairs_are_counted_by_bytes(pivot_encoder, source_encoder) -> None:
    counts = count_aligned_pairs(DIALOGUES, pivot_encoder, source_encoder)
    source, pivot = source_encoder.tokenizer, pivot_encoder.tokenizer
    the = source.convert_tokens_to_ids("▁the"), pivot.convert_tokens_to_ids("Ġthe")
    assert counts[the] > 20
    assert counts[source_encoder.end_of_turn_id, pivot_encoder.end_of_turn_id] == 4
    both = counts + counts
    assert add_counts([counts, counts])[the] == both[the]
    assert counts.shape == (len(source), len(pivot))


def test_ends_of_turn_map_to_each_other(pivot_encoder, source_encoder) -> None:
    vocabulary = pair_vocabulary(pivot_encoder, source_encoder, AlignmentConfig())
    source_end = source_encoder.tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    assert vocabulary[source_end] == pivot_encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_joint_fusion_of_two_sources(pivot_encoder, source_encoder) -> None:
    pivot = make_shard(pivot_encoder, 0.3)
    sources = [make_shard(source_encoder, 0.5), make_shard(source_encoder, 0.9, seed=1)]
    vocabulary = pair_vocabulary(pivot_encoder, source_encoder, AlignmentConfig())
    for function in ("mince", "avgce"):
        fused, coverage = fuse_shard(
            DIALOGUES, pivot, sources, pivot_encoder, [source_encoder] * 2, AlignmentConfig(),
            FusionFunctionConfig(function=function), [vocabulary] * 2,
        )  # fmt: skip
        assert fused.top_k.positions == pivot.top_k.positions
        assert coverage.overall("source-1").dialogues_won == 0
        assert coverage.overall("source-2").dialogues_won == 3


def test_same_model_as_its_own_source_changes_nothing(pivot_encoder) -> None:
    pivot = make_shard(pivot_encoder, 0.5)
    papers = FusionFunctionConfig(where_pivot_wins="distribution")
    fused, coverage = run(pivot_encoder, pivot_encoder, pivot, pivot, fusion=papers)
    assert np.array_equal(fused.top_k.token_ids, pivot.top_k.token_ids)
    assert np.array_equal(fused.top_k.log_probs, pivot.top_k.log_probs)
    assert coverage.overall("maths").boundary == pivot.top_k.positions


def test_shards_of_other_dialogues_or_positions_are_refused(pivot_encoder, source_encoder) -> None:
    pivot, source = make_shard(pivot_encoder, 0.5), make_shard(source_encoder, 0.5)
    with pytest.raises(ShardError, match="other dialogues"):
        run(pivot_encoder, source_encoder, make_shard(pivot_encoder, 0.5, DIALOGUES[:2]), source)
    with pytest.raises(ShardError, match="extracted positions"):
        run(pivot_encoder, Encoder(sentencepiece_tokenizer(OPENCHAT), 40, "source"), pivot, source)


def test_coverage_adds_up_and_survives_json() -> None:
    one = Coverage({"a": {"x": Counts(1, 10, 5, 2, 2, 1, 6.0, 5.0, 1, 8)}})
    two = Coverage({"a": {"x": Counts(1, 10, 10), "y": Counts(2, 4)}, "b": {"x": Counts(3, 3)}})
    total = one + two
    assert total.sources["a"]["x"] == Counts(2, 20, 15, 2, 2, 1, 6.0, 5.0, 1, 8)
    assert total.overall("a").positions == 24 and total.overall("a").fallen_back == 3
    assert total.overall("a").fallen_back_share == pytest.approx(3 / 24)
    assert one.overall("a").mass_kept == pytest.approx(5 / 6) and one.overall("a").won_share == pytest.approx(0.8)
    assert Coverage.from_json(json.loads(json.dumps(total.to_json()))) == total
    assert Counts().mass_kept == Counts().won_share == 0.0
