"""Answers of a real small checkpoint: against a plain loop, across batches, across seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_core.encoding.chat_templates import ChatTemplate
from fusion_core.errors import EvaluationError
from fusion_core.evaluation.generation import Sampling
from fusion_core.evaluation.generation_transformers import SeededDraw, TransformersGenerator, prompt_ids
from tests.fusion_core.chat_fixtures import (
    CHATML,
    GEMMA,
    LLAMA_2,
    byte_level_tokenizer,
    sentencepiece_tokenizer,
)

STORIES = Path(__file__).resolve().parents[2] / "data" / "stories260k"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
)
CONVERSATIONS = [
    [{"role": "user", "content": text}]
    for text in ("Once upon a time, there was a little girl", "Lily saw a big red ball. It was", "Tom")
]


@pytest.fixture(scope="module")
def parts():
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    tokenizer.chat_template = TEMPLATE
    return AutoModelForCausalLM.from_pretrained(STORIES).eval(), tokenizer


def generator_of(parts, batch_tokens: int = 4096) -> TransformersGenerator:
    return TransformersGenerator(*parts, "stories", batch_tokens=batch_tokens)


def test_greedy_answers_are_those_of_a_plain_loop(parts) -> None:
    model, tokenizer = parts
    answers = generator_of(parts).generate(CONVERSATIONS, Sampling(max_new_tokens=20))
    for conversation, answer in zip(CONVERSATIONS, answers, strict=True):
        ids = tokenizer(conversation[0]["content"] + "\n", add_special_tokens=False)["input_ids"]
        new: list[int] = []
        with torch.inference_mode():
            while len(new) < 20 and tokenizer.eos_token_id not in new:
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert answer.finished == (tokenizer.eos_token_id in new)
        assert (answer.prompt_tokens, answer.new_tokens) == (len(ids), len(new))


def test_draws_depend_on_the_seed_and_not_on_the_batch(parts) -> None:
    sampling = Sampling(temperature=0.9, max_new_tokens=24, seed=3)
    together = generator_of(parts).generate(CONVERSATIONS, sampling)
    alone = generator_of(parts, batch_tokens=1).generate(CONVERSATIONS, sampling)
    assert [one.text for one in together] == [one.text for one in alone]
    other = generator_of(parts).generate(CONVERSATIONS, Sampling(0.9, 24, seed=4))
    assert [one.text for one in other] != [one.text for one in together]


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    draw = SeededDraw([[1, 2]], Sampling(temperature=0.7, seed=1), torch.device("cpu"))
    counts = np.bincount([int(draw(None, scores.clone()).argmax()) for _ in range(4000)], minlength=4)
    expected = torch.softmax(scores[0] / 0.7, 0).numpy()
    # Four standard errors of a share from 4,000 draws.
    assert np.abs(counts / 4000 - expected).max() < 4 * np.sqrt(0.25 / 4000)


def test_a_turn_the_model_ends_itself_is_finished_and_its_text_stops_before_the_mark(parts) -> None:
    _, tokenizer = parts
    stop = tokenizer.convert_tokens_to_ids(".")
    ending = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    ending.generation_config.eos_token_id = stop
    generator = TransformersGenerator(ending, tokenizer, "stories", batch_tokens=4096)
    whole = generator_of(parts).generate(CONVERSATIONS, Sampling(max_new_tokens=60))
    answers = generator.generate(CONVERSATIONS, Sampling(max_new_tokens=60))
    for answer, longer in zip(answers, whole, strict=True):
        sentence, mark, _ = longer.text.partition(".")
        assert mark and answer.text == sentence
        assert answer.finished and answer.new_tokens < 60
        assert not longer.finished and longer.new_tokens == 60


def test_a_prompt_as_long_as_the_context_gets_an_empty_unfinished_answer(parts) -> None:
    model, _ = parts
    longer = [{"role": "user", "content": "word " * model.config.max_position_embeddings}]
    short, none = generator_of(parts).generate([CONVERSATIONS[2], longer], Sampling(max_new_tokens=3))
    assert short.new_tokens > 0
    assert (none.text, none.finished, none.new_tokens) == ("", False, 0)


def test_how_long_an_answer_may_be_depends_on_its_own_prompt_alone(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts[0].config, "max_position_embeddings", 64)
    nearly_full = [[{"role": "user", "content": "Lily saw a big red ball. " * times}] for times in (5, 6, 6)]
    conversations = [CONVERSATIONS[2], *nearly_full, CONVERSATIONS[1]]
    for sampling in (Sampling(max_new_tokens=50), Sampling(temperature=0.9, max_new_tokens=50, seed=5)):
        together = generator_of(parts).generate(conversations, sampling)
        alone = generator_of(parts, batch_tokens=1).generate(conversations, sampling)
        assert together == alone
        assert [one.new_tokens for one in alone] == [min(50, 64 - one.prompt_tokens) for one in alone]
    assert len({one.new_tokens for one in alone}) == 3


@pytest.mark.parametrize("template", [CHATML, LLAMA_2])
def test_a_template_without_a_generation_prompt_stops_where_its_response_begins(template: str) -> None:
    tokenizer = byte_level_tokenizer(template)
    text = ChatTemplate(tokenizer, "model").prompt([{"role": "user", "content": "the cat"}])
    assert text == {CHATML: "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"}.get(
        template, "<s>[INST] the cat [/INST]"
    )


def test_a_generation_prompt_of_the_template_is_taken_as_it_is() -> None:
    template = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    prompt = ChatTemplate(byte_level_tokenizer(template), "model").prompt([{"role": "user", "content": "the cat"}])
    assert prompt.endswith("<|im_start|>assistant\n<think>")


def test_a_system_turn_that_the_template_refuses_goes_in_front_of_the_question() -> None:
    tokenizer = sentencepiece_tokenizer(GEMMA)
    messages = [{"role": "system", "content": "the rules"}, {"role": "user", "content": "the cat"}]
    assert "the rules\n\nthe cat" in ChatTemplate(tokenizer, "model").prompt(messages)


def test_a_conversation_the_template_refuses_is_named() -> None:
    template = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    tokenizer = byte_level_tokenizer(template)
    with pytest.raises(EvaluationError, match="begins 'bad'"):
        prompt_ids(tokenizer, ChatTemplate(tokenizer, "model"), "model", [{"role": "user", "content": "bad"}])
