"""A benchmark's results: where they are kept, and who has the device while a model answers."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.concurrency import sync

from fusion_core.config import FusionConfig
from fusion_core.evaluation import benchmarks, generation_engines
from fusion_core.evaluation.benchmarks import benchmarks_of
from fusion_core.evaluation.generation import Generation
from fusion_core.models.identity import ResolvedModel
from tasks.addresses import ResolvedFusion
from tasks.stages.benchmarks import benchmark_address, score_benchmarks


class Silent:
    """A generator that says nothing."""

    name = "silent"

    def generate(self, conversations, sampling, progress=None) -> list[Generation]:
        return [Generation("", False, 1, 1) for _ in conversations]


@pytest.fixture
def fusion(tmp_path: Path) -> ResolvedFusion:
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    (tmp_path / "code.jsonl").write_text(
        json.dumps({"text": "Double.", "test_list": ["assert f(1) == 2"], "task_id": 1})
    )
    config = FusionConfig.model_validate(
        {
            "name": "recipe",
            "pivot": {"name": "pivot", "path": "pivot"},
            "sources": [{"name": "a", "path": "a"}],
            "dialogues": {"files": [{"path": "data.jsonl"}]},
            "evaluation": {
                "exact_match": [{"name": "sums", "path": str(tmp_path / "sums.jsonl")}],
                "pass_at_1": [{"name": "code", "path": str(tmp_path / "code.jsonl")}],
                "chat_sanity": {"limit": 1},
            },
        }
    )
    pivot, source = (ResolvedModel(name, Path(f"/models/{name}"), name * 8, name * 8) for name in ("pivot", "a"))
    return ResolvedFusion(config, pivot, (source,), (), "dd" * 32, "template")


def test_each_engine_has_results_of_its_own(fusion: ResolvedFusion, monkeypatch: pytest.MonkeyPatch) -> None:
    found = benchmarks_of(fusion.config.evaluation)
    assert [benchmark.kind for benchmark in found] == ["exact_match", "pass_at_1", "chat_sanity"]
    of_suite = replace(found[0], kind="lm_eval", uses_engine=False)
    quantised = replace(fusion.sources[0], quantization="int8")

    def addresses() -> list[str]:
        asked = [(model, benchmark) for model in (fusion.pivot, "targets/a/b") for benchmark in found]
        return [benchmark_address(fusion, *one) for one in (*asked, (quantised, found[0]), (fusion.pivot, of_suite))]

    before = addresses()
    assert len(set(before)) == len(before)
    monkeypatch.setattr(generation_engines, "find_spec", lambda name: object())
    monkeypatch.setattr(generation_engines.torch.cuda, "is_available", lambda: True)
    changed = [one != other for one, other in zip(before, addresses(), strict=True)]
    # A quantised model is answered for by transformers everywhere, and lm-eval by its own loader.
    assert changed == [True] * 6 + [False] * 2


@pytest.mark.parametrize(("limit", "loads"), [("gpu", 3), ("", 1)])
def test_weights_are_on_the_device_only_while_its_slot_is_held(
    fusion: ResolvedFusion, limit: str, loads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Silent]] = []
    held: list[bool] = []
    free = True

    @contextmanager
    def concurrency(*names: str, **given: object) -> Iterator[None]:
        nonlocal free
        free = False
        yield
        assert all(model() is None for model in loaded)
        free = True

    def open_generator(*given: object, **settings: object) -> Silent:
        model = Silent()
        loaded.append(weakref.ref(model))
        held.append(not free)
        return model

    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "FUSELINE_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("FUSELINE_DEVICE_LIMIT", limit)
    monkeypatch.setattr(sync, "concurrency", concurrency)
    monkeypatch.setattr(benchmarks, "open_generator", open_generator)
    assert len(score_benchmarks(fusion, fusion.pivot, "pivot")) == 3
    assert held == [bool(limit)] * loads
