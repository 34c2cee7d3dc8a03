"""Tokenizers whose normalisers change the text, as sources and as pivots: placed by offsets, certain in and out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fusion_core.alignment import (
    BytePositions,
    SharedText,
    join_responses,
    map_vocabulary,
    place_tokens,
    project_with_coverage,
)
from fusion_core.alignment.positions import align_spans
from fusion_core.alignment.projection import CONDITIONED, NO_ENTRY
from fusion_core.config import AlignmentConfig
from fusion_core.dialogues import Dialogue
from fusion_core.encoding.encoder import EncodedDialogue, Encoder
from fusion_core.encoding.token_bytes import token_bytes
from fusion_core.errors import DialogueRefusedError
from fusion_core.pairing import pair_vocabulary
from tests.fusion_core.alignment.helpers import one_hot, row_masses
from tests.fusion_core.chat_fixtures import (
    CHATML,
    CORPUS,
    byte_level_tokenizer,
    make_dialogue,
    sentencepiece_tokenizer,
    wrap_tokenizer,
)

LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?()=+*/<>|_#'⁄-", "é", "ï"]


def composing_tokenizer(*further: normalizers.Normalizer):
    """A byte-level BPE behind NFKC and whatever else."""
    tokenizer = byte_level_tokenizer(CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *further])
    return tokenizer


def word_piece_tokenizer():
    """A BERT-like WordPiece: lower case, no accents, no control characters, any space alike."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>"], initial_alphabet=LETTERS, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, *LETTERS, "".join(LETTERS)] * 3, trainer)
    return wrap_tokenizer(tokenizer, CHATML.replace("\n", " "), unk_token="<unk>")


def unigram_tokenizer():
    """A T5-like Unigram: NFKC, runs of spaces collapsed, word-start marks."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=LETTERS, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "".join(LETTERS)] * 3, trainer)
    return wrap_tokenizer(tokenizer, CHATML.replace("\n", " "), unk_token="<unk>")


ENCODERS = {
    name: Encoder(tokenizer, 9999, name)
    for name, tokenizer in {
        "bytes": byte_level_tokenizer(CHATML),
        "pieces": sentencepiece_tokenizer(CHATML),
        "nfkc": composing_tokenizer(),
        "nfkc lower": composing_tokenizer(normalizers.Lowercase()),
        "no accents": composing_tokenizer(normalizers.NFD(), normalizers.StripAccents()),
        "word piece": word_piece_tokenizer(),
        "unigram": unigram_tokenizer(),
    }.items()
}
CHANGING = ["nfkc", "nfkc lower", "no accents", "word piece", "unigram"]
PAIRS = [pair for pair in itertools.permutations(ENCODERS, 2) if set(pair) & set(CHANGING)]
VOCABULARIES = {pair: pair_vocabulary(ENCODERS[pair[0]], ENCODERS[pair[1]], AlignmentConfig()) for pair in PAIRS}
PLAIN_TEXTS = ("The cat sat on the MAT.", "add ½ cup, ﬁne ﬂour", "cafe\u0301 and naïve Café", "Two  spaces", "ＦＵＬＬ")
ANY_TEXTS = (
    "İstanbul ①②③ … ™",
    "A\u0308\u0301o\u0308 ǆ ﷺ",
    "你好 ﾊﾝｶｸ 👍🏽 é",
    "½",
    "…",
    "x\r\n\tY\u00a0Z",
    "ﬀ",
    "\u0301a",
)


def encode(encoder: Encoder, dialogue: Dialogue) -> EncodedDialogue | None:
    outcome = encoder.encode_all([dialogue])[0]
    if isinstance(outcome, DialogueRefusedError):
        return None
    for turn, text in enumerate(dialogue.responses):
        inside = (outcome.turns == turn) & ~outcome.is_end_of_turn
        starts, ends = outcome.byte_starts[inside], outcome.byte_ends[inside]
        assert starts[0] <= 0 and ends[-1] == len(text.encode())
        assert np.array_equal(starts[1:], ends[:-1]) and np.all(ends >= starts)
    return outcome


def check_pair(pivot_name: str, source_name: str, contents: list[str]) -> np.ndarray | None:
    """Project a certain source; return what kinds of positions there were."""
    dialogue = make_dialogue(*itertools.chain.from_iterable(("go on", content) for content in contents))
    pivot_encoder, source_encoder = ENCODERS[pivot_name], ENCODERS[source_name]
    pivot_encoded, source_encoded = encode(pivot_encoder, dialogue), encode(source_encoder, dialogue)
    if pivot_encoded is None or source_encoded is None:
        return None
    text, response_starts = join_responses([dialogue])
    pivot, source = (place_tokens([item], response_starts) for item in (pivot_encoded, source_encoded))
    shared = SharedText(text, pivot, source, *(token_bytes(e.tokenizer) for e in (pivot_encoder, source_encoder)))
    rows, bytes_read = align_spans(pivot.starts, pivot.ends, source.starts, source.ends)
    assert np.all(rows >= 0) and np.all(np.diff(rows) >= 0)
    positions = BytePositions(rows, bytes_read, pivot.row_splits)
    vocabulary = VOCABULARIES[pivot_name, source_name]
    certain = one_hot(source.labels, source.row_splits)
    for consistent in (True, False):
        found = project_with_coverage(certain, positions, vocabulary, text=shared, gold_consistent=consistent)
        assert np.abs(found.top_k.label_log_probs).max() < 1e-6
    found = project_with_coverage(certain, positions, vocabulary, text=shared)
    for position, label in enumerate(pivot.labels):
        # Where nothing fits, training takes the label alone: certain as well.
        expected = {int(label): pytest.approx(1.0)} if found.kinds[position] <= CONDITIONED else {}
        assert row_masses(found.top_k, position) == expected
    return found.kinds


@pytest.mark.parametrize(("pivot", "source"), PAIRS)
def test_certain_source_makes_the_pivot_certain(pivot: str, source: str) -> None:
    # A WordPiece has no token for a fraction or a ligature that its normaliser leaves alone.
    texts = [text for text in PLAIN_TEXTS if "word piece" not in (pivot, source) or text.isascii()]
    kinds = check_pair(pivot, source, texts)
    assert kinds is not None and np.mean(kinds <= CONDITIONED) > 0.75
    # Letters that only changed their case can be read in part.
    kinds = check_pair(pivot, source, ["The cat sat on the MAT."])
    assert kinds is not None and np.all(kinds <= CONDITIONED)
    for text in ANY_TEXTS:
        check_pair(pivot, source, [text])


any_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6), st.sampled_from([*PLAIN_TEXTS, *ANY_TEXTS])
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(any_text.map("".join).map(str.strip).filter(bool), st.sampled_from(PAIRS))
def test_any_text_stays_certain(text: str, pair: tuple[str, str]) -> None:
    check_pair(*pair, [text])


def test_case_worked_by_hand() -> None:
    # "½ Xé" as NFKC in lower case reads it: "1⁄2 xe´"; the fraction is one character, two bytes.
    encoder = ENCODERS["nfkc lower"]
    encoded = encoder.encode(make_dialogue("go", "½ X"))
    values = token_bytes(encoder.tokenizer).values
    assert b"".join(values[label] for label in encoded.labels[:-1]) == "1⁄2 x".encode()
    inside = ~encoded.is_end_of_turn
    covering = np.flatnonzero(encoded.byte_ends[inside] > np.maximum(encoded.byte_starts[inside], 0))
    last_of_fraction = covering[0]
    assert values[encoded.labels[last_of_fraction]] == b"2"
    assert encoded.byte_ends[: last_of_fraction + 1].tolist() == [0] * last_of_fraction + [2]
    assert encoded.byte_ends[-1] == encoded.response_bytes == 4


def test_characters_that_come_from_one_follow_from_the_first() -> None:
    kinds = check_pair("nfkc", "bytes", ["½ cup"])
    assert kinds is not None
    tokens = len(token_bytes(ENCODERS["nfkc"].tokenizer).values)
    assert tokens and np.count_nonzero(kinds == NO_ENTRY) >= 2
    # The other way round the source's tokens are chained: all that is left out is the middle of the character.
    kinds = check_pair("bytes", "nfkc", ["½ cup"])
    assert kinds is not None and np.count_nonzero(kinds == NO_ENTRY) <= 1


def test_vocabulary_is_mapped_as_the_pivot_reads_it() -> None:
    source, pivot = ENCODERS["bytes"].tokenizer, ENCODERS["nfkc lower"].tokenizer
    vocabulary = map_vocabulary(source, pivot, "bytes")
    # The two hold the same tokens, so ids would stay as they are but for the normaliser.
    assert token_bytes(source).digest == token_bytes(pivot).digest
    assert vocabulary[source.convert_tokens_to_ids("A")] == pivot.convert_tokens_to_ids("a")
    assert vocabulary[source.convert_tokens_to_ids("Ġthe")] == pivot.convert_tokens_to_ids("Ġthe")
    assert vocabulary[source.convert_tokens_to_ids("Ã")] == pivot.convert_tokens_to_ids("Ã")
    assert np.array_equal(map_vocabulary(pivot, source, "bytes"), np.arange(len(pivot)))
    assert np.array_equal(map_vocabulary(pivot, pivot, "bytes"), np.arange(len(pivot)))


def test_characters_that_the_tokenizer_leaves_out_are_refused() -> None:
    tokenizer = byte_level_tokenizer(CHATML)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    first, second = Encoder(tokenizer, 999, "drops").encode_all([make_dialogue("a", "box"), make_dialogue("a", "cat")])
    assert isinstance(first, DialogueRefusedError) and "response 1" in str(first) and "leaves out" in str(first)
    assert isinstance(second, EncodedDialogue)
    # A WordPiece drops control characters: of this response nothing is left.
    nothing = ENCODERS["word piece"].encode_all([make_dialogue("a", "\x1b")])[0]
    assert isinstance(nothing, DialogueRefusedError) and "leaves out" in str(nothing)
