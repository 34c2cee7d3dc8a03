"""What the stages of MT-Bench and AlpacaEval share: the judge, and what their addresses are made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from fusion_core.config.judging import JudgeConfig
from fusion_core.evaluation.judged_scores import Judge, JudgeCosts
from fusion_core.evaluation.judging import ChatClient, Endpoint, JudgeModel, JudgeSettings, ReplyLog
from fusion_core.models.identity import ResolvedModel
from tasks.addresses import ResolvedFusion, digest_of
from tasks.settings import Settings
from tasks.store.manifest import metadata_of
from tasks.store.publication import Artifact

# Raise a number when the code changes the bytes of a stage for equal settings.
ALGORITHM_VERSIONS = {"answers": 2, "judgments": 1}

# What decides a judgment; the rest of the judge's settings is patience and speed.
DECIDING_SETTINGS = ("model", "base_url", "temperature", "max_tokens", "attempts")


def open_judge(
    config: JudgeConfig, settings: Settings, *, max_tokens: int | None = None, top_logprobs: int | None = None
) -> JudgeModel:
    """Open the recipe's judge, with the log of everything this place has ever paid it for."""
    endpoint = Endpoint(
        config.model, config.base_url, config.key_variable, config.timeout_seconds, retries=config.retries
    )
    log = ReplyLog(settings.home / "judgments" / f"{digest_of(config.model, config.base_url)[:16]}.jsonl")
    asked = JudgeSettings(
        config.temperature, max_tokens or config.max_tokens, config.attempts, config.concurrency, top_logprobs
    )
    return JudgeModel(ChatClient(endpoint), log, asked)


def describe_judge(config: JudgeConfig, judgments: int = 1) -> Judge:
    """Return the judge as tables name it."""
    return Judge(
        model=config.model,
        endpoint=Endpoint(config.model, config.base_url).host,
        temperature=config.temperature,
        judgments=judgments,
    )


def deciding_settings(config: JudgeConfig) -> dict[str, Any]:
    """Return the judge's settings that belong into addresses."""
    return {name: getattr(config, name) for name in DECIDING_SETTINGS}


def model_identity(fusion: ResolvedFusion, model: ResolvedModel | Artifact | str) -> str:
    """Return what names a model in addresses, as in those of its held-out scores."""
    return PurePosixPath(fusion.scores(model.address if isinstance(model, Artifact) else model)).parts[1]


def total_costs(artifacts: Iterable[Artifact]) -> JudgeCosts:
    """Add up what the judgments of several models cost when they were made."""
    parts = [metadata_of(artifact)["costs"] for artifact in artifacts]
    return JudgeCosts(**{name: sum(part[name] for part in parts) for name in JudgeCosts.model_fields})
