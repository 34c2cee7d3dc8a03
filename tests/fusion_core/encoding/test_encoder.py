"""Encoded dialogues: every response byte covered once, the end of turn found, the text's tokens unchanged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from fusion_core.config import DialogueFile
from fusion_core.dialogues import Dialogue, Turn, read_dialogues
from fusion_core.encoding.encoder import EncodedDialogue, Encoder
from fusion_core.encoding.token_bytes import token_bytes
from fusion_core.errors import DialogueRefusedError
from tests.fusion_core.chat_fixtures import (
    ALPACA,
    CHATML,
    LLAMA_2,
    OPENCHAT,
    SPECIAL_ENDINGS,
    byte_level_tokenizer,
    lower_casing_tokenizer,
    make_dialogue,
    sentencepiece_tokenizer,
)

AWKWARD_TEXTS = (
    "plain words on one line",
    "你好，世界。这是一个测试！",
    "👩‍👩‍👧‍👦 family 😀😀 and \U0001f1e9\U0001f1ea",
    "مرحبا بالعالم שלום עולם",
    "line one\r\nline two\r\n\r\n\tindented\t\tby tabs   and   spaces",
    "def f(x):\n    return {'a': [1, 2.5e-3]}\n\n\nprint(f(1))",
    "क़ानून หนึ่ง Việt Nam naïve Ångström",
    "\ufeffBOM, zero\u200bwidth, nbsp\u00a0here, \u2028 separator, NUL \x00 end",
    "1234567890 $5.00 50% <<48/2=24>>24 #### 72",
    "a",
    "<0x41> is text",
)


def check_spans(encoded: EncodedDialogue, dialogue: Dialogue, values: list[bytes], whole: bool = True) -> None:
    """Compare every span with the bytes of the response, without the encoder's arithmetic."""
    assert len({len(encoded.labels), len(encoded.turns), len(encoded.byte_starts), len(encoded.is_end_of_turn)}) == 1
    assert np.all(np.diff(encoded.response_positions) > 0)
    covered = 0
    for turn, text in enumerate(dialogue.responses):
        response = text.encode()
        inside = (encoded.turns == turn) & ~encoded.is_end_of_turn
        starts, ends = encoded.byte_starts[inside], encoded.byte_ends[inside]
        if not len(starts):
            assert not whole
            continue
        assert starts[0] <= 0 < ends[0]
        assert np.array_equal(starts[1:], ends[:-1])
        for start, end, label in zip(starts, ends, encoded.labels[inside], strict=True):
            assert values[label].endswith(response[max(start, 0) : end])
            assert len(values[label]) == end - start
        assert ends[-1] == len(response) or not whole
        covered += int(ends[-1])
        after = (encoded.turns == turn) & encoded.is_end_of_turn
        assert np.all(encoded.byte_starts[after] == len(response))
        assert np.all(encoded.byte_ends[after] == len(response))
    assert encoded.response_bytes == covered


def test_spans_of_a_case_worked_by_hand() -> None:
    # <s>GPT4 Correct User: a<|end_of_turn|>GPT4 Correct Assistant: the cat<|end_of_turn|>, of which "▁the" and the
    # single letters are tokens; the word-start space of "▁the" is the template's.
    tokenizer = sentencepiece_tokenizer(OPENCHAT)
    encoded = Encoder(tokenizer, 100, "hand").encode(make_dialogue("a", "the cat"))
    assert tokenizer.convert_ids_to_tokens(encoded.labels) == ["▁the", "▁", "c", "a", "t", "<|end_of_turn|>"]
    assert encoded.byte_starts.tolist() == [-1, 3, 4, 5, 6, 7]
    assert encoded.byte_ends.tolist() == [3, 4, 5, 6, 7, 7]
    assert encoded.is_end_of_turn.tolist() == [False] * 5 + [True]
    assert encoded.turns.tolist() == [0] * 6
    assert encoded.response_bytes == 7
    assert encoded.response_positions[0] == len(encoded.input_ids) - 7


@pytest.mark.parametrize("template", SPECIAL_ENDINGS)
@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_tokens_are_those_of_the_whole_text(make, template: str) -> None:
    tokenizer = make(SPECIAL_ENDINGS[template])
    encoder = Encoder(tokenizer, 10_000, "whole")
    for dialogue in (make_dialogue("the cat?", "the mat.", "and", "you?\n  sat"), make_dialogue("你好", "😀 café")):
        encoded = encoder.encode(dialogue)
        messages = [turn._asdict() for turn in dialogue.turns]
        # Only this template reads the date, and the encoder's is fixed.
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, **({"date_string": "26 Jul 2024"} if template == "llama_3_1" else {})
        )
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert whole[: len(encoded.input_ids)] == encoded.input_ids.tolist()
        assert encoded.is_end_of_turn.sum() == len(dialogue.responses)
        assert encoder.end_of_turn_id == encoded.input_ids[-1]
        check_spans(encoded, dialogue, token_bytes(tokenizer).values)


def test_labels_are_the_tokens_after_their_positions() -> None:
    encoded = Encoder(byte_level_tokenizer(), 100, "labels").encode(make_dialogue("the cat", "the mat"))
    assert np.array_equal(encoded.labels, encoded.input_ids[encoded.response_positions + 1])
    assert encoded.input_ids.dtype == encoded.response_positions.dtype == encoded.byte_ends.dtype == np.int32


@pytest.mark.parametrize("template", [LLAMA_2, ALPACA])
def test_no_end_of_turn_without_a_special_token_right_after_the_response(template: str) -> None:
    tokenizer = byte_level_tokenizer(template)
    encoder = Encoder(tokenizer, 1000, "plain ending")
    dialogue = make_dialogue("the cat", "sat.", "more", "no")
    encoded = encoder.encode(dialogue)
    assert encoder.end_of_turn_id is None
    assert not encoded.is_end_of_turn.any()
    check_spans(encoded, dialogue, token_bytes(tokenizer).values)


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip).filter(bool),
        min_size=2,
        max_size=6,
    ).filter(lambda contents: len(contents) % 2 == 0)
)
def test_any_text_is_covered(contents: list[str]) -> None:
    dialogue = make_dialogue(*contents)
    for encoder in _ENCODERS:
        outcome = encoder.encode_all([dialogue])[0]
        assert isinstance(outcome, EncodedDialogue)
        # The word-start mark is the one character that the second tokenizer cannot tell from a space.
        if encoder is _ENCODERS[0] or not any("▁" in content for content in contents):
            check_spans(outcome, dialogue, encoder._bytes.values)
        assert outcome.response_bytes == sum(len(text.encode()) for text in dialogue.responses)


_ENCODERS = [Encoder(byte_level_tokenizer(), 9999, "bytes"), Encoder(sentencepiece_tokenizer(), 9999, "pieces")]


def test_cut_keeps_what_is_covered() -> None:
    tokenizer = byte_level_tokenizer()
    dialogue = make_dialogue("the cat", "the dog sat on the log", "and", "the cat sat on the mat")
    whole = Encoder(tokenizer, 1000, "whole").encode(dialogue)
    refused = 0
    for length in range(1, len(whole.input_ids) + 3):
        outcome = Encoder(tokenizer, length, "cut").encode_all([dialogue])[0]
        if isinstance(outcome, DialogueRefusedError):
            refused += 1
            assert length <= whole.response_positions[0] + 1
            assert "max_length_tokens" in str(outcome)
            continue
        kept = whole.response_positions + 1 < length
        assert len(outcome.input_ids) <= length
        assert np.array_equal(outcome.labels, whole.labels[kept])
        assert np.array_equal(outcome.byte_ends, whole.byte_ends[kept])
        check_spans(outcome, dialogue, token_bytes(tokenizer).values, whole=False)
    assert refused == whole.response_positions[0] + 1
    assert outcome.response_bytes == sum(len(text.encode()) for text in dialogue.responses)


def test_response_with_a_special_token_is_refused_and_the_others_are_not() -> None:
    dialogues = [make_dialogue("a", "the cat"), make_dialogue("b", "x <|im_end|> y"), make_dialogue("c", "the mat")]
    encoder = Encoder(byte_level_tokenizer(), 1000, "special")
    first, refused, last = encoder.encode_all(dialogues)
    assert isinstance(refused, DialogueRefusedError)
    assert "'<|im_end|>'" in str(refused) and dialogues[1].id in str(refused) and "'special'" in str(refused)
    for dialogue, encoded in ((dialogues[0], first), (dialogues[2], last)):
        check_spans(encoded, dialogue, token_bytes(byte_level_tokenizer()).values)
    with pytest.raises(DialogueRefusedError):
        encoder.encode(dialogues[1])
    assert len(encoder.encode_all([dialogues[1]])) == 1
    assert encoder.encode_all([]) == []


def test_character_without_a_token_is_refused() -> None:
    tokenizer = sentencepiece_tokenizer(CHATML)
    vocabulary = {"<unk>": 0, "▁": 1, **{letter: place for place, letter in enumerate("abcdehitmsru\n", start=2)}}
    tokenizer.backend_tokenizer.model = models.BPE(vocabulary, [], unk_token="<unk>")
    tokenizer.unk_token = "<unk>"
    first, refused = Encoder(tokenizer, 1000, "letters").encode_all(
        [make_dialogue("a", "be"), make_dialogue("a", "b世e")]
    )
    assert isinstance(first, EncodedDialogue)
    assert isinstance(refused, DialogueRefusedError) and "has no token" in str(refused)


def test_tokens_of_a_changed_text_are_placed_by_offsets() -> None:
    lower, plain = Encoder(lower_casing_tokenizer(), 1000, "lower"), Encoder(byte_level_tokenizer(), 1000, "plain")
    changed = lower.encode(make_dialogue("A", "THE cat", "B", "the CAT"))
    unchanged = plain.encode(make_dialogue("a", "the cat", "b", "the cat"))
    for name in ("input_ids", "response_positions", "turns", "byte_starts", "byte_ends", "is_end_of_turn"):
        assert np.array_equal(getattr(changed, name), getattr(unchanged, name)), name
    composed = lower.encode(make_dialogue("A", "İ the"))
    # The dotted capital is one character of two bytes in the text, two characters of three bytes to the model.
    assert composed.byte_ends[-2:].tolist() == [6, 6] and composed.response_bytes == 6
    assert np.all(composed.byte_starts[1:] == composed.byte_ends[:-1])


def test_lone_surrogates_are_refused() -> None:
    encoder = Encoder(byte_level_tokenizer(), 1000, "surrogates")
    broken = [(Turn("user", "a"), Turn("assistant", "x \ud83d y")), (Turn("user", "\udc00"), Turn("assistant", "a"))]
    whole, *refused = encoder.encode_all(
        [
            make_dialogue("a", "the cat"),
            *(Dialogue(f"id-{number}", "test", turns) for number, turns in enumerate(broken)),
        ]
    )
    assert isinstance(whole, EncodedDialogue)
    for outcome, words in zip(refused, ("turn 2 has a lone surrogate (U+D83D)", "turn 1"), strict=True):
        assert isinstance(outcome, DialogueRefusedError) and words in str(outcome)


def test_many_dialogues_are_encoded_as_each_alone() -> None:
    encoder = Encoder(sentencepiece_tokenizer(), 60, "batch")
    dialogues = [
        make_dialogue(f"{number}", "the cat " * (number % 5 + 1), "x", text)
        for number, text in enumerate(AWKWARD_TEXTS * 30)
    ]
    for dialogue, outcome in zip(dialogues, encoder.encode_all(dialogues), strict=True):
        alone = encoder.encode_all([dialogue])[0]
        assert type(alone) is type(outcome)
        if isinstance(outcome, EncodedDialogue):
            assert outcome.dialogue_id == dialogue.id and outcome.domain == "test"
            for name in ("input_ids", "response_positions", "turns", "byte_starts", "byte_ends", "is_end_of_turn"):
                assert np.array_equal(getattr(outcome, name), getattr(alone, name)), name


REAL = {
    "openchat_like": OPENCHAT,
    "qwen2_5": None,
    "internlm2": None,
    "mistral_nemo": None,
    "deepseek_v3": None,
    "gpt2": "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}",
    "yi": CHATML,
}
REAL_DATA = (
    "gsm8k/train.jsonl",
    "sgd/sgd_dialogues_1500.jsonl",
    "gpteacher/codegen-instruct.json",
    "topical_chat/topical_chat_dialogues.jsonl",
    "oasst100/oasst_en_100_paths.jsonl",
)


@pytest.fixture(scope="module")
def real_dialogues(shared_folder) -> list[Dialogue]:
    chosen = [make_dialogue("Say it back.", text, text, text) for text in AWKWARD_TEXTS]
    for name in REAL_DATA:
        path = shared_folder / "data" / name
        rows = (row for _, (_, row, _) in zip(range(12), read_dialogues(DialogueFile(path=path), path), strict=False))
        chosen += [row for row in rows if isinstance(row, Dialogue)]
    return chosen


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_cover_real_dialogues(name: str, shared_folder, shared_tokenizer, real_dialogues) -> None:
    if name == "internlm2":
        # Its config points to Python code, which is not run; tokenizer.json says all that is needed.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(shared_folder / "tokenizers" / name)
    else:
        tokenizer = shared_tokenizer(name)
    template = REAL[name] or tokenizer.chat_template
    own_template, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        encoder = Encoder(tokenizer, 4096, name)
        outcomes = encoder.encode_all(real_dialogues)
        values = token_bytes(tokenizer).values
        equal = 0
        for dialogue, outcome in zip(real_dialogues, outcomes, strict=True):
            assert isinstance(outcome, EncodedDialogue), outcome
            check_spans(outcome, dialogue, values)
            messages = [turn._asdict() for turn in dialogue.turns]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            whole = tokenizer(text, add_special_tokens=False)["input_ids"]
            equal += whole[: len(outcome.input_ids)] == outcome.input_ids.tolist()
            if encoder.end_of_turn_id is not None:
                assert outcome.is_end_of_turn.sum() == len(dialogue.responses)
                assert set(outcome.labels[outcome.is_end_of_turn]) == {encoder.end_of_turn_id}
    finally:
        tokenizer.chat_template = own_template
    if name == "yi":
        # This tokenizer.json does not mark <|im_end|> as special, so it is ordinary text to it.
        assert encoder.end_of_turn_id is None
    else:
        assert equal == len(real_dialogues)


def test_stored_tokenizer_settings_for_padding_do_not_leak_in(tmp_path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    dialogue = make_dialogue("the cat", "the dog sat on the log")
    assert np.array_equal(
        Encoder(loaded, 1000, "stored").encode(dialogue).input_ids,
        Encoder(tokenizer, 1000, "fresh").encode(dialogue).input_ids,
    )
