"""Token bytes: derived from any tokenizer's own model and decoder, adding up to the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusion_core.encoding.token_bytes import token_byte_ends, token_bytes
from fusion_core.errors import DialogueRefusedError, TokenizerError
from tests.fusion_core.chat_fixtures import byte_level_tokenizer, lower_casing_tokenizer, sentencepiece_tokenizer

CORPUS = ["the cat sat on the mat, 1234 times", "naïve café 你好 世界 😀", "def add(a, b):\n    return a + b\n"] * 4

AWKWARD = [
    "",
    " ",
    "a",
    "   leading and trailing   ",
    "tabs\t\t and  runs   of    spaces",
    "line\nfeeds\r\nand CRLF\r\n\r\n",
    "👨‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️",
    "e\u0301 a\u0308 \u1112\u1161\u11ab combining",
    "مرحبا بالعالم שלום",
    "你好世界，今天是2024年。",
    "\x00\x01\x07\x1b\x7f control",
    "\u200b\u200d\ufeff\u2028\u00a0 invisible",
    "<0x41> ▁under Ġ Ċ ## literal marks",
    "x**2 + 3.14159e-10 == 0x1F600",
]
any_text = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from(AWKWARD)), max_size=5
).map("".join)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A T5-like Unigram with word-start marks, without byte fallback."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """A BERT-like WordPiece."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_byte_level_pieces_are_their_bytes() -> None:
    tokenizer = byte_level_tokenizer()
    known = token_bytes(tokenizer)
    assert known.values[tokenizer.convert_tokens_to_ids("Ġthe")] == b" the"
    assert known.values[tokenizer.convert_tokens_to_ids("Ċ")] == b"\n"
    assert {known.values[i] for i in tokenizer.convert_tokens_to_ids(["Ã", "ł"])} == {b"\xc3", b"\xa0"}
    assert len(known) == len(tokenizer)
    assert sorted(np.flatnonzero(known.is_special)) == sorted(tokenizer.added_tokens_decoder)
    assert known.values[tokenizer.eos_token_id] == b"</s>"
    buffer, offsets = known.flat
    assert buffer[offsets[7] : offsets[8]].tobytes() == known.values[7]


def test_sentencepiece_pieces_are_their_bytes() -> None:
    tokenizer = sentencepiece_tokenizer()
    known = token_bytes(tokenizer)
    names = ["▁the", "▁", "<0x0A>", "<0xE4>", "th"]
    assert [known.values[i] for i in tokenizer.convert_tokens_to_ids(names)] == [b" the", b" ", b"\n", b"\xe4", b"th"]
    assert known.is_byte_fallback.sum() == 256


def test_word_piece_and_suffix_pieces_are_their_bytes() -> None:
    tokenizer = word_piece_tokenizer()
    known = token_bytes(tokenizer)
    vocabulary = tokenizer.get_vocab()
    inner = next(piece for piece in vocabulary if piece.startswith("##"))
    assert known.values[vocabulary[inner]] == inner[2:].encode()
    assert known.values[vocabulary["the"]] == b" the"
    suffixed = Tokenizer(models.BPE({"a</w>": 0, "a": 1}, [], end_of_word_suffix="</w>"))
    suffixed.decoder = decoders.BPEDecoder(suffix="</w>")
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=suffixed)).values == [b"a ", b"a"]


def test_alphabet_of_a_tokenizer_without_decoder_is_its_pre_tokenizers() -> None:
    plain = Tokenizer(models.BPE({"Ġa": 0, "▁a": 1}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=plain)).values == [b" a", "▁a".encode()]
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=plain)).values == ["Ġa".encode(), b" a"]


def test_added_tokens_have_the_bytes_of_their_text() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("Ġraw text", special=False)])
    known = token_bytes(tokenizer)
    assert known.values[-1] == "Ġraw text".encode()
    assert not known.is_special[-1]


def test_unknown_decoder_steps_are_refused() -> None:
    plain = Tokenizer(models.BPE({"a": 0}, []))
    plain.decoder = decoders.CTC()
    with pytest.raises(TokenizerError, match="'CTC'"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=plain))


def test_digest_is_of_the_content() -> None:
    assert token_bytes(byte_level_tokenizer()).digest == token_bytes(byte_level_tokenizer(None)).digest
    assert token_bytes(byte_level_tokenizer()).digest != token_bytes(sentencepiece_tokenizer()).digest


def test_tokens_added_later_are_seen() -> None:
    tokenizer = byte_level_tokenizer()
    before = token_bytes(tokenizer)
    assert token_bytes(tokenizer) is before
    tokenizer.add_tokens(["new"])
    assert token_bytes(tokenizer).values[-1] == b"new"


def check_ends(tokenizer, text: str) -> None:
    ends = token_byte_ends(tokenizer, text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ends) == len(ids)
    assert np.all(np.diff(ends) >= 0)
    if text:
        assert ends[-1] == len(text.encode())
    known, spelled = token_bytes(tokenizer), text.encode()
    if b"".join(known.values[i] for i in ids).lstrip(b" ") == spelled.lstrip(b" "):
        starts = [0, *ends][: len(ends)]
        for token, start, end in zip(ids, starts, ends, strict=True):
            assert known.values[token].endswith(spelled[start:end])


@settings(max_examples=60, deadline=None)
@given(any_text)
def test_bytes_add_up_for_tokenizers_made_here(text) -> None:
    for tokenizer in MADE:
        check_ends(tokenizer, text)


MADE = [byte_level_tokenizer(), sentencepiece_tokenizer()]


@pytest.mark.parametrize("name", ["openchat_like", "qwen2_5", "mistral_nemo", "yi", "gpt2"])
def test_bytes_add_up_for_real_tokenizers(shared_tokenizer, name) -> None:
    tokenizer = shared_tokenizer(name)
    for text in AWKWARD:
        check_ends(tokenizer, text)

    @settings(max_examples=40, deadline=None)
    @given(any_text)
    def anything(text: str) -> None:
        if not any(added.content in text for added in tokenizer.added_tokens_decoder.values()):
            check_ends(tokenizer, text)

    anything()


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(DialogueRefusedError, match="U\\+D83D"):
        token_byte_ends(byte_level_tokenizer(), "broken \ud83d emoji")


def test_tokens_of_another_text_are_refused() -> None:
    with pytest.raises(DialogueRefusedError, match="spell"):
        token_byte_ends(byte_level_tokenizer(), "the cat", [0, 1])


def test_changed_text_is_placed_by_offsets() -> None:
    lower = lower_casing_tokenizer()
    assert token_byte_ends(lower, "THE CAT").tolist() == token_byte_ends(lower, "the cat").tolist()
    composing = byte_level_tokenizer()
    composing.backend_tokenizer.normalizer = normalizers.NFKC()
    text = "ﬁne ① cafe\u0301"
    ends = token_byte_ends(composing, text)
    assert ends[-1] == len(text.encode()) and np.all(np.diff(ends) >= 0)


def test_word_piece_and_unigram_are_placed_by_offsets_where_spaces_were_lost() -> None:
    for tokenizer in (word_piece_tokenizer(), unigram_tokenizer()):
        text = "The cat, the  mat"
        ends = token_byte_ends(tokenizer, text)
        assert ends[-1] == len(text) and np.all(np.diff(ends) >= 0)
        assert len(ends) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
