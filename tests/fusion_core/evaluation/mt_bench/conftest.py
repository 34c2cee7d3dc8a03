"""A four-question benchmark, answers and judgments, written key by key as FastChat's programs write theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusion_core.evaluation.judging import ChatClient, Endpoint, JudgeModel, JudgeSettings, ReplyLog
from fusion_core.evaluation.mt_bench import MtBench, load_mt_bench

SAMPLE = Path(__file__).parent / "sample"


@pytest.fixture(scope="session")
def sample() -> Path:
    return SAMPLE


@pytest.fixture(scope="session")
def benchmark_data() -> MtBench:
    return load_mt_bench(SAMPLE)


@pytest.fixture
def judge_at(tmp_path: Path) -> Callable[..., JudgeModel]:
    """Return a function that opens the judge ``gpt-4`` at an address; all of them share one reply log."""

    def open_judge(url: str, *, timeout_seconds: float = 5.0, **settings) -> JudgeModel:
        endpoint = Endpoint("gpt-4", url, "TEST_JUDGE_KEY", timeout_seconds, retries=2, first_wait_seconds=0.01)
        return JudgeModel(ChatClient(endpoint), ReplyLog(tmp_path / "replies.jsonl"), JudgeSettings(**settings))

    return open_judge
