"""The vLLM generator against a stand-in with vLLM's interface: what it is asked, and what is made of its answers."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fusion_core.config import ModelConfig
from fusion_core.errors import ModelError
from fusion_core.evaluation.generation import Sampling
from fusion_core.evaluation.generation_vllm import VllmGenerator
from fusion_core.models.identity import resolve_model
from fusion_core.models.loading import load_tokenizer

STORIES = Path(__file__).resolve().parents[2] / "data" / "stories260k"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
)


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]


@dataclass
class FakeVllm:
    """Answers every prompt with its own first tokens and an end of turn, unless that is longer than allowed."""

    settings: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    broken: bool = False

    def module(self) -> ModuleType:
        fake = self

        class LLM:
            llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))

            def __init__(self, **settings: Any) -> None:
                if fake.broken:
                    raise RuntimeError("no kernel for this card\nsecond line")
                fake.settings = settings

            def generate(self, prompts, parameters, use_tqdm):
                outputs = []
                for prompt, one in zip(prompts, parameters, strict=True):
                    ids = prompt["prompt_token_ids"]
                    fake.asked.append((ids, one))
                    written = [*ids[:3], one.stop_token_ids[0]]
                    reason = "stop" if one.max_tokens >= len(written) else "length"
                    answer = SimpleNamespace(token_ids=written[: one.max_tokens], finish_reason=reason)
                    outputs.append(SimpleNamespace(outputs=[answer]))
                return outputs

        module = ModuleType("vllm")
        module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
        return module


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    fake = FakeVllm()
    monkeypatch.setitem(sys.modules, "vllm", fake.module())
    return fake


@pytest.fixture
def model(tmp_path: Path):
    shutil.copytree(STORIES, tmp_path / "stories")
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    return resolve_model(
        ModelConfig(name="stories", path=tmp_path / "stories", chat_template=tmp_path / "template.jinja")
    )


def test_prompts_are_tokens_and_answers_lose_their_end(fake: FakeVllm, model) -> None:
    tokenizer = load_tokenizer(model)
    generator = VllmGenerator(model, tokenizer)
    conversations = [[{"role": "user", "content": text}] for text in ("Lily saw a ball", "Tom", "word " * 80)]
    first, second, too_long = generator.generate(conversations, Sampling(0.7, 40, seed=2))
    ids = tokenizer("Lily saw a ball\n", add_special_tokens=False)["input_ids"]
    assert fake.asked[0][0] == ids
    assert first.text == tokenizer.decode(ids[:3]).strip() and first.finished
    assert (first.prompt_tokens, first.new_tokens) == (len(ids), 4)
    # No word fits behind a prompt that fills the context; it is not sent at all.
    assert len(fake.asked) == 2 and (too_long.text, too_long.finished) == ("", False)
    parameters = [one for _, one in fake.asked]
    assert [one.temperature for one in parameters] == [0.7, 0.7]
    assert parameters[0].seed != parameters[1].seed
    assert all(one.max_tokens <= 64 - len(ids) for ids, one in fake.asked)
    assert second.finished
    assert fake.settings["generation_config"] == "vllm"


def test_an_answer_that_is_cut_off_is_not_finished_and_greedy_is_zero(fake: FakeVllm, model) -> None:
    generator = VllmGenerator(model, load_tokenizer(model))
    [answer] = generator.generate([[{"role": "user", "content": "Lily saw"}]], Sampling(0.0, 2))
    assert not answer.finished and answer.new_tokens == 2
    assert fake.asked[0][1].temperature == 0.0


def test_what_vllm_cannot_load_names_the_way_out(fake: FakeVllm, model) -> None:
    fake.broken = True
    with pytest.raises(ModelError, match=r"vLLM cannot load .*no kernel for this card"):
        VllmGenerator(model, load_tokenizer(model))
