"""Vocabulary maps of all methods on tokenizers made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from scipy import sparse
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusion_core.alignment import map_vocabulary
from fusion_core.alignment.edit_distance import nearest_texts
from fusion_core.alignment.statistics import add_counts
from fusion_core.encoding.token_bytes import token_bytes
from fusion_core.errors import AlignmentError


def make_tokenizer(tokens: list[str], byte_level: bool, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer with the given pieces; special tokens follow them in order."""
    tokenizer = Tokenizer(
        models.BPE({token: index for index, token in enumerate(tokens)}, [], byte_fallback=not byte_level)
    )
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials.values()])
    named = {role: text for role, text in specials.items() if role.endswith("_token")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


@pytest.fixture(scope="module")
def pivot() -> PreTrainedTokenizerFast:
    return make_tokenizer(
        ["<0x41>", "A", "▁", "▁the", "the", "ö", "s", "▁cat"],
        False,
        {"eos_token": "</s>", "bos_token": "<s>", "mark": "<|im_start|>"},
    )


@pytest.fixture(scope="module")
def source() -> PreTrainedTokenizerFast:
    return make_tokenizer(
        ["A", "Ġ", "Ġthe", "the", "Ã¶", "Ã", "thes", "Ġthese", "Ġcats", "Ġhat", "x"],
        True,
        {"eos_token": "<|end|>", "pad_token": "<|pad|>", "mark": "<|im_start|>", "other": "<|other|>"},
    )


def mapped(vocabulary: np.ndarray, source, pivot) -> dict[str, str | None]:
    return {
        source.convert_ids_to_tokens(index): None if target < 0 else pivot.convert_ids_to_tokens(int(target))
        for index, target in enumerate(vocabulary)
    }


SPECIAL = {"<|end|>": "</s>", "<|pad|>": None, "<|im_start|>": "<|im_start|>", "<|other|>": None}
SAME = {"A": "A", "Ġ": "▁", "Ġthe": "▁the", "the": "the", "Ã¶": "ö"}


def test_bytes_maps_the_same_bytes_or_the_longest_prefix(source, pivot) -> None:
    found = map_vocabulary(source, pivot, "bytes")
    assert found.dtype == np.int32 and len(found) == len(source)
    longest = {"Ã": None, "thes": "the", "Ġthese": "▁the", "Ġcats": "▁cat", "Ġhat": "▁", "x": None}
    assert mapped(found, source, pivot) == SAME | longest | SPECIAL


def test_exact_maps_the_same_bytes_only(source, pivot) -> None:
    others = dict.fromkeys(["Ã", "thes", "Ġthese", "Ġcats", "Ġhat", "x"])
    assert mapped(map_vocabulary(source, pivot, "exact"), source, pivot) == SAME | others | SPECIAL


def test_mined_maps_to_the_nearest_text(source, pivot) -> None:
    found = mapped(map_vocabulary(source, pivot, "mined"), source, pivot)
    # "Ġhat" is one letter from " cat"; half a character is as far from every single letter: the first is taken.
    assert found == SAME | SPECIAL | {
        "Ã": "<0x41>", "thes": "the", "Ġthese": "▁the", "Ġcats": "▁cat", "Ġhat": "▁cat", "x": "<0x41>",
    }  # fmt: skip


def test_statistics_maps_to_the_most_frequent_partner(source, pivot) -> None:
    ids = {name: source.convert_tokens_to_ids(name) for name in ("Ġhat", "thes", "the", "x")}
    to = {name: pivot.convert_tokens_to_ids(name) for name in ("▁cat", "s", "the", "▁the", "A")}
    counts = sparse.lil_matrix((len(source), len(pivot)), dtype=np.int64)
    counts[ids["Ġhat"], to["▁cat"]], counts[ids["Ġhat"], to["s"]] = 2, 3
    counts[ids["the"], to["the"]], counts[ids["the"], to["▁the"]] = 4, 4
    counts[ids["thes"], to["the"]], counts[ids["thes"], to["▁the"]] = 1, 1
    found = mapped(map_vocabulary(source, pivot, "statistics", counts=counts.tocsr()), source, pivot)
    assert found["Ġhat"] == "s"
    assert found["the"] == "the"  # equally frequent: the same bytes
    assert found["thes"] == "▁the"  # equally frequent: the lowest id
    assert found["x"] is None and found["A"] == "A"  # never seen: as exact
    assert {name: found[name] for name in SPECIAL} == SPECIAL


def test_equal_vocabularies_map_to_themselves(source) -> None:
    twin = make_tokenizer(
        ["A", "Ġ", "Ġthe", "the", "Ã¶", "Ã", "thes", "Ġthese", "Ġcats", "Ġhat", "x"],
        True,
        {"eos_token": "<|end|>", "pad_token": "<|pad|>", "mark": "<|im_start|>", "other": "<|other|>"},
    )
    for method in ("bytes", "exact", "mined"):
        assert np.array_equal(map_vocabulary(source, twin, method), np.arange(len(source)))


def test_given_roles_win(source, pivot) -> None:
    other, begin = source.convert_tokens_to_ids("<|other|>"), pivot.convert_tokens_to_ids("<s>")
    assert map_vocabulary(source, pivot, "bytes", roles={other: begin})[other] == begin


def test_special_pivot_tokens_never_stand_for_text() -> None:
    pivot = make_tokenizer(["<", "/"], True, {"eos_token": "</s>"})
    source = make_tokenizer(["</s>", "<"], True, {"eos_token": "<end>"})
    assert mapped(map_vocabulary(source, pivot, "bytes"), source, pivot) == {"</s>": "<", "<": "<", "<end>": "</s>"}


def test_counts_are_for_statistics_of_these_tokenizers(source, pivot) -> None:
    with pytest.raises(AlignmentError, match="counts"):
        map_vocabulary(source, pivot, "statistics")
    with pytest.raises(AlignmentError, match="counts"):
        map_vocabulary(source, pivot, "bytes", counts=sparse.csr_matrix((1, 1)))
    with pytest.raises(AlignmentError, match="shape"):
        map_vocabulary(source, pivot, "statistics", counts=sparse.csr_matrix((1, 1)))
    with pytest.raises(AlignmentError, match="shapes"):
        add_counts([sparse.csr_matrix((1, 1)), sparse.csr_matrix((2, 1))])
    with pytest.raises(AlignmentError, match="no counts"):
        add_counts([])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("abc ö😀", max_size=8), max_size=12),
    st.lists(st.text("abc ö😀", max_size=8), min_size=1, max_size=12),
)
def test_nearest_texts_are_nearest(wanted, offered) -> None:
    found = nearest_texts(wanted, offered, workers=1)
    for text, index in zip(wanted, found, strict=True):
        distances = [Levenshtein.distance(text, other) for other in offered]
        assert index == int(np.argmin(distances))


def test_token_bytes_of_the_two_families_agree(source, pivot) -> None:
    assert token_bytes(source).values[2] == token_bytes(pivot).values[3] == b" the"
