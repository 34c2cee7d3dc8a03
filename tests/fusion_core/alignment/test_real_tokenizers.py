"""Ordered pairs of real tokenizers: certain in, certain out, on awkward text and on real dialogues."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.alignment import map_vocabulary, project_with_coverage
from fusion_core.encoding.token_bytes import token_bytes
from tests.fusion_core.alignment.helpers import make_spans, one_hot, share
from tests.fusion_core.encoding.test_token_bytes import AWKWARD, any_text

# Byte-level BPE, SentencePiece with byte fallback, Tekken, each with its own way to cut digits, spaces and emoji.
NAMES = ["openchat_like", "qwen2_5", "mistral_nemo", "yi", "gpt2"]
NEIGHBOURS = list(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True))


def tokenise(tokenizer, texts: list[str]):
    """Tokens of each text and the bytes its first token has before it; None where they do not spell the text."""
    known = token_bytes(tokenizer)
    responses, leads = [], []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spelled = b"".join(known.values[token] for token in ids)
        lead = len(spelled) - len(text.encode())
        if lead < 0 or spelled[lead:] != text.encode() or any(known.is_special[token] for token in ids):
            return None
        # A word-start mark alone stands before the response and is none of its positions.
        while ids and lead >= len(known.values[ids[0]]):
            lead -= len(known.values[ids.pop(0)])
        responses.append(ids)
        leads.append(lead)
    return responses, leads


def check_pair(pivot_tokenizer, source_tokenizer, vocabulary: np.ndarray, texts: list[str]) -> None:
    pivot_tokens, source_tokens = tokenise(pivot_tokenizer, texts), tokenise(source_tokenizer, texts)
    if pivot_tokens is None or source_tokens is None:
        return
    pivot_bytes, source_bytes = token_bytes(pivot_tokenizer), token_bytes(source_tokenizer)
    encoded = [text.encode() for text in texts]
    pivot = make_spans(pivot_bytes, pivot_tokens[0], encoded, pivot_tokenizer.eos_token_id, pivot_tokens[1])
    source = make_spans(source_bytes, source_tokens[0], encoded, source_tokenizer.eos_token_id, source_tokens[1])
    shared, positions = share(encoded, pivot, source, pivot_bytes, source_bytes)
    covered = positions.source_rows
    assert np.all(np.diff(covered) >= 0) and np.all(covered >= 0)
    found = project_with_coverage(one_hot(source.labels, source.row_splits), positions, vocabulary, text=shared)
    assert np.array_equal(found.top_k.token_ids[:, 0], pivot.labels)
    assert np.all(found.top_k.token_ids[:, 1:] == -1)
    assert np.abs(found.top_k.log_probs[:, 0]).max(initial=0) < 1e-6
    assert np.abs(found.top_k.label_log_probs).max(initial=0) < 1e-6


@pytest.fixture(scope="module")
def real_texts(shared_folder) -> list[str]:
    lines = (shared_folder / "data" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    texts = [json.loads(line)["answer"] for line in lines]
    code = (shared_folder / "data" / "mbpp").glob("*.jsonl")
    return texts + [json.loads(line)["code"] for line in next(code).read_text(encoding="utf-8").splitlines()[:40]]


def check_all(pivot_tokenizer, source_tokenizer, real_texts: list[str], examples: int) -> None:
    roles = {source_tokenizer.eos_token_id: pivot_tokenizer.eos_token_id}
    vocabulary = map_vocabulary(source_tokenizer, pivot_tokenizer, "bytes", roles=roles)
    for text in AWKWARD:
        check_pair(pivot_tokenizer, source_tokenizer, vocabulary, [text or "."])
    check_pair(pivot_tokenizer, source_tokenizer, vocabulary, real_texts)

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(any_text.filter(bool), min_size=1, max_size=3))
    def on_any_text(texts: list[str]) -> None:
        check_pair(pivot_tokenizer, source_tokenizer, vocabulary, texts)

    on_any_text()


@pytest.mark.parametrize(("pivot", "source"), NEIGHBOURS)
def test_certain_source_makes_the_pivot_certain(shared_tokenizer, real_texts, pivot, source) -> None:
    check_all(shared_tokenizer(pivot), shared_tokenizer(source), real_texts, examples=20)


@pytest.mark.slow
@pytest.mark.parametrize(("pivot", "source"), list(itertools.permutations([*NAMES, "deepseek_v3"], 2)))
def test_certain_source_makes_the_pivot_certain_in_every_pair(shared_tokenizer, real_texts, pivot, source) -> None:
    check_all(shared_tokenizer(pivot), shared_tokenizer(source), real_texts, examples=100)
