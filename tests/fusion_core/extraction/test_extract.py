"""Extraction against the models' own logits, whatever the batches, and its ways to fail."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fusion_core.config import ExtractionConfig
from fusion_core.errors import ModelError
from fusion_core.extraction import extract as extraction
from fusion_core.extraction.extract import extract_shard
from tests.fusion_core.extraction.test_output_heads import FAMILIES, small_model

CPU = torch.device("cpu")
VOCABULARY = 205


@dataclass(frozen=True)
class Encoded:
    dialogue_id: str
    input_ids: np.ndarray
    response_positions: np.ndarray


class Tokenizer:
    """As much of a tokenizer as extraction looks at: six ids fewer than the models' vocabularies."""

    def __len__(self) -> int:
        return VOCABULARY


def some_dialogues(count: int = 12, vocabulary: int = VOCABULARY) -> list[Encoded | None]:
    random = np.random.default_rng(0)
    dialogues: list[Encoded | None] = []
    for number in range(count):
        tokens = int(random.integers(6, 90))
        chosen = random.choice(tokens - 1, size=int(random.integers(1, tokens - 1)), replace=False)
        ids = random.integers(3, vocabulary, tokens).astype(np.int32)
        dialogues.append(Encoded(f"dialogue-{number}", ids, np.sort(chosen).astype(np.int32)))
    dialogues[4] = None
    dialogues[5] = Encoded("no-positions", np.arange(5, dtype=np.int32), np.empty(0, np.int32))
    return dialogues


def extract(model, dialogues, **settings):
    config = ExtractionConfig(**{"top_k": 7, "batch_tokens": 300, **settings})
    return extract_shard(model, Tokenizer(), dialogues, config, model_name="small", device=CPU)


@torch.inference_mode()
def assert_equals_own_logits(model, dialogues, top_k, vocabulary=VOCABULARY):
    for number, dialogue in enumerate(dialogues):
        found = top_k.dialogue(number)
        if dialogue is None:
            assert found.positions == 0
            continue
        logits = model(input_ids=torch.from_numpy(dialogue.input_ids.astype(np.int64))[None]).logits[0]
        log_probs = logits.double().log_softmax(1)[dialogue.response_positions.astype(np.int64)]
        labels = torch.from_numpy(dialogue.input_ids[dialogue.response_positions + 1].astype(np.int64))
        expected = log_probs[:, :vocabulary].topk(top_k.top_k)
        np.testing.assert_array_equal(found.token_ids, expected.indices)
        np.testing.assert_allclose(found.log_probs, expected.values, atol=1e-4)
        np.testing.assert_allclose(found.label_log_probs, log_probs.gather(1, labels[:, None])[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_models_own_logits(family):
    model, dialogues = small_model(family), some_dialogues()
    top_k, statistics = extract(model, dialogues)
    assert not statistics.own_logits
    assert_equals_own_logits(model, dialogues, top_k)


def test_tokens_beyond_unused_ids_are_read():
    class WithUnusedIds(Tokenizer):
        def __len__(self) -> int:
            return VOCABULARY - 50

        def get_vocab(self) -> dict[str, int]:
            return {str(index): index for index in range(VOCABULARY) if not 20 <= index < 70}

    model, dialogues = small_model("Llama"), some_dialogues()
    top_k, _ = extract_shard(model, WithUnusedIds(), dialogues, ExtractionConfig(), model_name="small", device=CPU)
    assert_equals_own_logits(model, dialogues, top_k)


def test_equals_the_own_logits_of_a_real_model(stories_folder):
    model = AutoModelForCausalLM.from_pretrained(stories_folder, dtype=torch.float32).eval()
    size = model.config.vocab_size
    dialogues = some_dialogues(vocabulary=size)
    top_k, _ = extract_shard(model, range(size), dialogues, ExtractionConfig(), model_name="stories", device=CPU)
    assert_equals_own_logits(model, dialogues, top_k, vocabulary=size)


@pytest.mark.parametrize("truncation", ["top_k", "sampled"])
def test_does_not_depend_on_batches(truncation):
    model, dialogues = small_model("Mixtral"), some_dialogues()
    alone, _ = extract(model, dialogues, batch_tokens=1, truncation=truncation)
    together, _ = extract(model, dialogues, batch_tokens=10_000, truncation=truncation)
    last_first, _ = extract(model, dialogues[::-1], truncation=truncation)
    np.testing.assert_array_equal(alone.token_ids, together.token_ids)
    np.testing.assert_allclose(alone.log_probs, together.log_probs, atol=1e-5)
    np.testing.assert_allclose(alone.label_log_probs, together.label_log_probs, atol=1e-5)
    np.testing.assert_array_equal(last_first.dialogue(11).token_ids, alone.dialogue(0).token_ids)


def test_sampled_rows_carry_the_whole_mass_and_exact_labels():
    model, dialogues = small_model("Gemma2"), some_dialogues()
    sampled, _ = extract(model, dialogues, truncation="sampled", seed=3)
    exact, _ = extract(model, dialogues)
    mass_of_padding = 0.2
    assert (np.exp(sampled.log_probs).sum(1) > 1 - mass_of_padding).all()
    assert (np.exp(exact.log_probs).sum(1) < np.exp(sampled.log_probs).sum(1)).all()
    np.testing.assert_allclose(sampled.label_log_probs, exact.label_log_probs, atol=1e-5)
    other, _ = extract(model, dialogues, truncation="sampled", seed=4)
    assert (sampled.token_ids != other.token_ids).any()


@pytest.mark.parametrize("truncation", ["top_k", "sampled"])
def test_a_head_that_is_not_understood_takes_the_models_own_logits_and_says_so_once(truncation, caplog):
    model, dialogues = small_model("Llama"), some_dialogues()
    expected, _ = extract(model, dialogues, truncation=truncation)
    unknown = small_model("Llama")
    unknown.get_output_embeddings = lambda: None
    with caplog.at_level(logging.WARNING):
        found, statistics = extract(unknown, dialogues, truncation=truncation)
        extract(unknown, dialogues, truncation=truncation)
    assert statistics.own_logits
    assert [record.name for record in caplog.records] == ["fusion_core.extraction.extract"]
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


class OutOfMemoryAbove:
    """A body that runs out of memory on batches of more tokens than it has room for."""

    def __init__(self, body, tokens: int, error: Exception) -> None:
        self.body, self.tokens, self.error, self.seen = body, tokens, error, []

    def __call__(self, input_ids, **settings):
        self.seen.append(input_ids.numel())
        if input_ids.numel() > self.tokens:
            raise self.error
        return self.body(input_ids=input_ids, **settings)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_out_of_memory_halves_the_budget_and_remembers_it(monkeypatch, error):
    model, dialogues = small_model("Llama"), some_dialogues()
    expected, _ = extract(model, dialogues)
    body = model.model
    monkeypatch.setattr(body, "forward", OutOfMemoryAbove(body.forward, 150, error))
    found, statistics = extract(model, dialogues, batch_tokens=700)
    assert 75 < statistics.batch_tokens <= 150
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_allclose(found.label_log_probs, expected.label_log_probs, atol=1e-5)
    body.forward.seen.clear()
    extract(model, dialogues, batch_tokens=700)
    assert max(body.forward.seen) <= 150


def test_a_dialogue_that_alone_does_not_fit_is_named(monkeypatch):
    model, dialogues = small_model("Llama"), some_dialogues()
    extract(model, dialogues)
    longest = max((d for d in dialogues if d is not None), key=lambda d: d.response_positions[-1:].sum())
    monkeypatch.setattr(model.model, "forward", OutOfMemoryAbove(model.model.forward, 20, torch.OutOfMemoryError("x")))
    with pytest.raises(ModelError, match=rf"'small'.*{longest.dialogue_id} of \d+ tokens.*max_length_tokens"):
        extract(model, dialogues)


def test_another_error_of_the_model_is_not_swallowed(monkeypatch):
    model = small_model("Llama")
    extract(model, some_dialogues())
    monkeypatch.setattr(model.model, "forward", OutOfMemoryAbove(model.model.forward, 0, RuntimeError("broken kernel")))
    with pytest.raises(RuntimeError, match="broken kernel"):
        extract(model, some_dialogues())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_name_model_and_dialogue(value):
    model, dialogues = small_model("Llama"), some_dialogues()
    extract(model, dialogues)
    marked = 204
    for number, dialogue in enumerate(dialogues):
        if dialogue is not None:
            dialogue.input_ids[dialogue.input_ids == marked] = 3
            if number == 7:
                dialogue.input_ids[int(dialogue.response_positions[0])] = marked
    model.get_input_embeddings().weight.data[marked] = value
    with pytest.raises(ModelError, match=r"'small' computes NaN or infinite logits in dialogue dialogue-7;"):
        extract(model, dialogues)


def test_nothing_to_read():
    model = small_model("Llama")
    for dialogues in ([], [None, None]):
        top_k, statistics = extract(model, dialogues)
        assert top_k.positions == 0 and top_k.dialogues == len(dialogues) and top_k.token_ids.shape == (0, 7)
        assert statistics.positions == 0 and statistics.padding_share == 0.0


def test_progress_counts_positions():
    calls = []
    extract_shard(
        small_model("Llama"),
        Tokenizer(),
        some_dialogues(),
        ExtractionConfig(batch_tokens=200),
        model_name="small",
        device=CPU,
        progress=lambda done, total: calls.append((done, total)),
    )
    positions = sum(len(d.response_positions) for d in some_dialogues() if d is not None)
    assert calls[-1] == (positions, positions) and len(calls) > 2


def test_only_hidden_states_at_response_positions_meet_the_output_embedding(monkeypatch):
    seen = []
    whole = extraction.top_k_distributions

    def watch(hidden, *arguments, **settings):
        seen.append(len(hidden))
        return whole(hidden, *arguments, **settings)

    monkeypatch.setattr(extraction, "top_k_distributions", watch)
    dialogues = some_dialogues()
    top_k, _ = extract(small_model("Llama"), dialogues)
    # A processor's are filled up to a multiple of 32.
    assert 0 <= sum(seen) - top_k.positions < 32 * len(seen)
    assert all(positions % 32 == 0 for positions in seen)
