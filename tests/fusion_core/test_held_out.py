"""Held-out scores: against dense logits in float64, and comparable across tokenizers and cuts."""

import copy
import math
from functools import cache

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from fusion_core.dialogues import Dialogue, Turn
from fusion_core.encoding.encoder import Encoder
from fusion_core.errors import EvaluationError, ModelError
from fusion_core.evaluation.held_out import score_held_out
from fusion_core.evaluation.held_out_scores import DialogueScore, HeldOutScores
from fusion_core.evaluation.score_table import compare

CPU = torch.device("cpu")
DIALOGUES = (
    Dialogue("d1", "mathematics", (Turn("user", "What is 2 + 3?"), Turn("assistant", "It is 5."))),
    Dialogue(
        "d2",
        "dialogue",
        (
            Turn("system", "Be brief."),
            Turn("user", "Grüß dich!"),
            Turn("assistant", "Grüß Gott, was gibt es? 你好"),
            Turn("user", "Nothing."),
            Turn("assistant", "Then a good day to you, and to all of yours."),
        ),
    ),
    Dialogue("d3", "mathematics", (Turn("user", "And 4 * 7, slowly?"), Turn("assistant", "28, said slowly."))),
)


def template(end_of_turn: str) -> str:
    return (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end_of_turn + "{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


@pytest.fixture(scope="module")
def chat_tokenizer(shared_tokenizer):
    """Real tokenizers; those without a chat template get a plain one with their own end-of-turn token."""
    ends = {"gpt2": "<|endoftext|>", "yi": "<|im_end|>", "openchat_like": "<|end_of_turn|>"}

    @cache
    def load(name):
        tokenizer = copy.deepcopy(shared_tokenizer(name))
        if name in ends:
            tokenizer.chat_template = template(ends[name])
        return tokenizer

    return load


def tiny_llama(vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def score(model, tokenizer, dialogues=DIALOGUES, **changes):
    settings = {"max_length_tokens": 256, "batch_tokens": 512, "model_name": "tiny", "device": CPU} | changes
    return score_held_out(model, tokenizer, dialogues, **settings)


def handmade(name, **dialogues):
    """dialogues: id to (domain, response_bytes, ends, nats)."""
    rows = (
        DialogueScore(dialogue_id=key, domain=value[0], response_bytes=value[1], ends=value[2], nats=value[3])
        for key, value in dialogues.items()
    )
    return HeldOutScores(model_name=name, max_length_tokens=64, dialogues=tuple(rows), refused={})


@pytest.mark.parametrize("name", ["qwen2_5", "openchat_like"])
@pytest.mark.parametrize("batch_tokens", [1, 120, 4096])
def test_equals_dense_float64_whatever_the_batch(chat_tokenizer, name, batch_tokens):
    tokenizer = chat_tokenizer(name)
    model = tiny_llama(len(tokenizer))
    scores = score(model, tokenizer, batch_tokens=batch_tokens)
    encoder = Encoder(tokenizer, 256, name)
    exact = tiny_llama(len(tokenizer)).double()
    for dialogue, result in zip(DIALOGUES, scores.dialogues, strict=True):
        encoded = encoder.encode(dialogue)
        with torch.no_grad():
            log_probs = exact(torch.tensor(encoded.input_ids[None]).long()).logits[0].log_softmax(-1)
        expected = [-float(log_probs[t, encoded.input_ids[t + 1]]) for t in encoded.response_positions]
        assert result.nats == pytest.approx(expected, abs=2e-4)
        assert result.bytes_covered == encoded.response_bytes == sum(result.response_bytes)
    total = sum(sum(result.nats) for result in scores.dialogues) / sum(r.bytes_covered for r in scores.dialogues)
    assert scores.nats_per_byte == pytest.approx(total)
    assert set(scores.domains) == {"mathematics", "dialogue"}


def test_logits_are_capped_as_the_architecture_does(chat_tokenizer):
    tokenizer = chat_tokenizer("gpt2")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.05,
    )
    model = Gemma2ForCausalLM(config).eval()
    scores = score(model, tokenizer, DIALOGUES[:1])
    # Capped at 0.05, no label can be much more or less probable than 1 in V.
    assert scores.dialogues[0].nats == pytest.approx(
        [math.log(len(tokenizer))] * len(scores.dialogues[0].nats), abs=0.11
    )
    encoded = Encoder(tokenizer, 256, "gpt2").encode(DIALOGUES[0])
    with torch.no_grad():
        log_probs = model(torch.tensor(encoded.input_ids[None]).long()).logits[0].log_softmax(-1)
    expected = [-float(log_probs[t, encoded.input_ids[t + 1]]) for t in encoded.response_positions]
    assert scores.dialogues[0].nats == pytest.approx(expected, abs=1e-4)


def test_json_round_trip_keeps_everything(chat_tokenizer):
    tokenizer = chat_tokenizer("qwen2_5")
    scores = score(tiny_llama(len(tokenizer)), tokenizer)
    assert HeldOutScores.model_validate_json(scores.model_dump_json()) == scores


def test_tokenizers_meet_at_the_same_places(chat_tokenizer):
    """Uncut, every model is compared on all bytes; cut at few tokens, all on the same fewer bytes."""
    models = {}
    for name in ("qwen2_5", "openchat_like", "yi"):
        tokenizer = chat_tokenizer(name)
        models[name] = (tiny_llama(len(tokenizer)), tokenizer)
    whole = {name: score(*pair) for name, pair in models.items()}
    table = compare(whole, "qwen2_5", resamples=20)
    everything = sum(sum(row.response_bytes) for row in whole["yi"].dialogues)
    assert sum(table.response_bytes.values()) == everything
    assert table.bytes_cut == table.left_out == 0
    assert table.row("yi").overall.nats_per_byte == pytest.approx(whole["yi"].nats_per_byte)

    cut = {name: score(*pair, max_length_tokens=50) for name, pair in models.items()}
    assert len({scores.dialogues[1].ends[-1] for scores in cut.values()}) > 1
    table = compare(cut, "qwen2_5", resamples=20)
    assert table.bytes_cut > 0
    assert sum(table.response_bytes.values()) + table.bytes_cut == everything
    assert sum(table.response_bytes.values()) <= min(
        sum(row.bytes_covered for row in scores.dialogues) for scores in cut.values()
    )


def test_comparison_worked_by_hand():
    # Two responses of 3 and 5 bytes: ends of turns at 4 and 10. b is cut inside the second response.
    a = handmade("a", x=("d", (3, 5), (1, 3, 4, 6, 9, 10), (1.0, 1.0, 0.5, 1.0, 9.0, 9.0)))
    b = handmade("b", x=("d", (3, 5), (2, 3, 4, 6, 7), (1.0, 2.0, 0.5, 3.0, 9.0)))
    table = compare({"a": a, "b": b}, "a", resamples=10)
    # The last common place is 6: 3 + 2 bytes.
    assert table.response_bytes == {"d": 5}
    assert table.bytes_cut == 3
    assert table.row("a").overall.nats_per_byte == pytest.approx(3.5 / 5)
    assert table.row("b").domains["d"].nats_per_byte == pytest.approx(6.5 / 5)
    assert table.row("b").overall.difference == pytest.approx(3.0 / 5)
    assert table.row("a").overall.difference is None
    assert table.row("b").overall.low is None, "one dialogue gives no interval"


def test_an_end_of_turn_counts_only_where_all_predict_one():
    a = handmade("a", x=("d", (3, 5), (3, 4, 9, 10), (1.0, 100.0, 1.0, 100.0)))
    b = handmade("b", x=("d", (3, 5), (3, 9), (2.0, 2.0)))
    table = compare({"a": a, "b": b}, "b", resamples=10)
    assert table.row("a").overall.nats_per_byte == pytest.approx(2.0 / 8)
    assert table.row("b").overall.nats_per_byte == pytest.approx(4.0 / 8)


def test_overall_weighs_by_bytes_and_the_mean_does_not():
    a = handmade("a", x=("d1", (1,), (1,), (1.0,)), y=("d2", (9,), (9,), (18.0,)))
    table = compare({"a": a}, "a", resamples=10)
    assert table.row("a").overall.nats_per_byte == pytest.approx(19 / 10)
    assert table.row("a").mean_of_domains.nats_per_byte == pytest.approx((1 + 2) / 2)


def test_only_dialogues_read_by_all_enter():
    a = handmade("a", x=("d", (2,), (2,), (1.0,)), y=("d", (2,), (2,), (7.0,)))
    b = HeldOutScores(
        model_name="b",
        max_length_tokens=64,
        dialogues=handmade("b", x=("d", (2,), (2,), (3.0,))).dialogues,
        refused={"y": "why"},
    )
    table = compare({"a": a, "b": b}, "a", resamples=10)
    assert table.dialogues == {"d": 1}
    assert table.left_out == 1
    assert table.row("b").refused == 1
    assert table.row("a").overall.nats_per_byte == pytest.approx(0.5)


def test_pairing_makes_the_interval_of_a_constant_difference_narrow():
    hardness = [1.0 + index % 7 for index in range(30)]
    rows = {f"x{index}": ("d", (10,), (10,), (value,)) for index, value in enumerate(hardness)}
    shifted = {key: (d, size, ends, (nats[0] + 0.5,)) for key, (d, size, ends, nats) in rows.items()}
    table = compare({"a": handmade("a", **rows), "b": handmade("b", **shifted)}, "a", resamples=200)
    overall = table.row("b").overall
    assert overall.low == pytest.approx(0.05) and overall.high == pytest.approx(0.05)


def test_nan_names_model_and_dialogue(chat_tokenizer):
    tokenizer = chat_tokenizer("qwen2_5")
    model = tiny_llama(len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(ModelError, match=r"'tiny'.*dialogue d\d"):
        score(model, tokenizer)


def test_refused_dialogues_are_kept_with_their_reason(chat_tokenizer):
    tokenizer = chat_tokenizer("qwen2_5")
    bad = Dialogue("d9", "mathematics", (Turn("user", "Hi"), Turn("assistant", "Stop <|im_end|> here")))
    scores = score(tiny_llama(len(tokenizer)), tokenizer, (*DIALOGUES, bad))
    assert list(scores.refused) == ["d9"]
    assert "<|im_end|>" in scores.refused["d9"]
    with pytest.raises(EvaluationError, match="none of the 1 held-out"):
        score(tiny_llama(len(tokenizer)), tokenizer, (bad,))


def test_nothing_in_common_and_unknown_baseline_are_errors():
    a = handmade("a", x=("d", (2,), (2,), (1.0,)))
    b = handmade("b", y=("d", (2,), (2,), (1.0,)))
    with pytest.raises(EvaluationError, match="read by all"):
        compare({"a": a, "b": b}, "a")
    with pytest.raises(EvaluationError, match="baseline 'c'"):
        compare({"a": a}, "c")


def test_running_out_of_memory_halves_the_batch(chat_tokenizer, monkeypatch):
    tokenizer = chat_tokenizer("qwen2_5")
    model = tiny_llama(len(tokenizer))
    expected = score(model, tokenizer)
    whole = type(model.base_model).forward

    def small_memory(self, input_ids, **arguments):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("too large")
        return whole(self, input_ids, **arguments)

    monkeypatch.setattr(type(model.base_model), "forward", small_memory)
    again = score(model, tokenizer)
    for one, other in zip(expected.dialogues, again.dialogues, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-4)
