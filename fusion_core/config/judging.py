"""The benchmarks that a judge model decides, and the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from fusion_core.config.names import Count, CountOrZero, Few, Seconds, Seed
from fusion_core.config_section import Section

Judgments = Annotated[
    Few, Field(description="Judgments of each answer: judges vary from run to run by more than methods differ.")
]


class JudgeConfig(Section):
    """The model that judges, behind an OpenAI-compatible endpoint."""

    model: str = Field(min_length=1, description="The judge's name at its endpoint, such as gpt-4-0613.")
    base_url: str | None = Field(
        None, description="Address such as http://localhost:8000/v1; default: OpenAI's own endpoint."
    )
    key_variable: str = Field(
        "OPENAI_API_KEY", description="Environment variable with the key; the key itself belongs into no recipe."
    )
    temperature: NonNegativeFloat = Field(
        0.0, description="0 as FastChat; above it for several judgments by a judge that repeats itself at 0."
    )
    max_tokens: Count = Field(2048, description="Tokens of one judgment; FastChat's number.")
    attempts: Few = Field(3, description="How often a judgment without a rating is asked for.")
    concurrency: Few = Field(8, description="Requests under way at once.")
    timeout_seconds: Seconds = Field(120.0, description="Patience with one request.")
    retries: CountOrZero = Field(
        8, le=1024, description="Repeats of a request after 429, 5xx, a time-out or half a reply."
    )

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str | None) -> str | None:
        parts = urlsplit(url) if url is not None else None
        if parts is None:
            return url
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("a key belongs into the environment variable of `key_variable`, not into the address")
        return url

    @field_validator("key_variable")
    @classmethod
    def _a_name_and_no_key(cls, name: str) -> str:
        if not name.isidentifier():
            raise ValueError("expected the name of an environment variable, such as OPENAI_API_KEY, not a key")
        return name


class MtBenchConfig(Section):
    """MT-Bench: 80 two-turn questions in 8 categories, rated 1 to 10."""

    path: Path | None = Field(
        None, description="Folder with its data; default: where `fuseline data mt-bench` puts it."
    )
    questions: Count | None = Field(
        None, description="Take this many, evenly from the categories, for a cheap look; default: all."
    )
    judgments: Judgments = 1
    pairwise: bool = Field(False, description="Also compare every model's answers with the pivot's, in both orders.")
    max_new_tokens: Count = Field(1024, description="Answers are cut off here; FastChat's number.")
    seed: Seed = Field(0, description="Seed of the answers of categories with a temperature above 0.")


class AlpacaEvalConfig(Section):
    """AlpacaEval 2.0: 805 instructions, each answer compared with the baseline's."""

    path: Path | None = Field(
        None, description="Folder with its data; default: benchmarks/alpaca_eval in the home folder."
    )
    instructions: Count | None = Field(None, description="Take this many from the start; default: all.")
    max_new_tokens: Count = Field(2048, description="Answers are cut off here.")
    temperature: NonNegativeFloat = Field(0.7, description="Temperature of the answers.")
    seed: Seed = Field(0, description="Seed of the answers, and of the order in which two answers are shown.")


class JudgedModels(Section):
    """What a judge is asked, and of which models."""

    judge: JudgeConfig | None = Field(None, description="The judge; needed by `mt_bench` and `alpaca_eval`.")
    judged_models: tuple[str, ...] | None = Field(
        None, description="Models that are judged, beside the pivot; default: all. Every one costs judgments."
    )
    mt_bench: MtBenchConfig | None = Field(None, description="{} for all of MT-Bench as FastChat runs it.")
    alpaca_eval: AlpacaEvalConfig | None = Field(None, description="{} for all of AlpacaEval 2.0.")

    @model_validator(mode="after")
    def _a_judge_and_its_work(self) -> JudgedModels:
        judged = [name for name in ("mt_bench", "alpaca_eval") if getattr(self, name) is not None]
        if judged and self.judge is None:
            raise ValueError(f"`{judged[0]}` needs a judge; add `judge` with its `model`")
        for name in ("judge", "judged_models"):
            if not judged and getattr(self, name) is not None:
                raise ValueError(f"`{name}` has nothing to judge; add `mt_bench` or `alpaca_eval`, or remove it")
        return self
