"""The judged benchmarks as stages: published once, never paid for twice, side by side in tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from prefect.concurrency import sync
from transformers import AutoModelForCausalLM

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.errors import ConfigError, EvaluationError
from fusion_core.evaluation.mt_bench import load_mt_bench
from fusion_core.models.identity import ResolvedModel, resolve_model
from tasks.addresses import ResolvedFusion
from tasks.stages.judged import copy_judged_files, find_judged, judge_model, judged_addresses, judged_tables
from tasks.stages.judged_data import check_judged
from tasks.stages.mt_bench import answers_address, judgments_address
from tasks.store.publication import discard
from tasks.store.workplace import open_workplace
from tests.fusion_core.evaluation.chat_server import chat_server
from tests.fusion_core.evaluation.mt_bench.conftest import SAMPLE
from tests.fusion_core.evaluation.mt_bench.fastchat import load_model_answers, show_pairwise, show_single

STORIES = Path(__file__).resolve().parents[2] / "data" / "stories260k"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FUSELINE_STORE", "MLFLOW_TRACKING_URI", "FUSELINE_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-very-secret")
    return tmp_path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResolvedModel, ResolvedModel]:
    """A pivot that tells stories, and a source of the same body with other weights."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "template.jinja").write_text(TEMPLATE)
    shutil.copytree(STORIES, folder / "other")
    other = AutoModelForCausalLM.from_pretrained(STORIES)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(-1.0)
    other.save_pretrained(folder / "other")
    pivot, source = (
        resolve_model(ModelConfig(name=name, path=path, chat_template=folder / "template.jinja", dtype="float32"))
        for name, path in (("pivot", STORIES), ("other", folder / "other"))
    )
    return pivot, source


def fusion_of(models: tuple[ResolvedModel, ResolvedModel], url: str, **evaluation) -> ResolvedFusion:
    judge = {"model": "judge", "base_url": url, "key_variable": "TEST_JUDGE_KEY", "retries": 1}
    asked = evaluation.pop("mt_bench", {})
    mt_bench = None if asked is None else {"path": str(SAMPLE), "max_new_tokens": 6} | asked
    config = FusionConfig.model_validate(
        {
            "name": "recipe",
            "pivot": {"name": "pivot", "path": str(models[0].folder)},
            "sources": [{"name": "other", "path": str(models[1].folder)}],
            "dialogues": {"files": [{"path": "data.jsonl"}]},
            "evaluation": {"judge": judge | evaluation.pop("judge", {}), "mt_bench": mt_bench} | evaluation,
        }
    )
    return ResolvedFusion(config, models[0], (models[1],), (), "dd" * 32, TEMPLATE)


def rate(body, number):
    """Prefers long answers; compares by what stands first."""
    if "Compare" in body["messages"][0]["content"]:
        return "[[A]]"
    return f"Rating: [[{1 + len(body['messages'][-1]['content']) % 9}]]"


def test_judging_is_published_once_and_paid_for_once(place: Path, models) -> None:
    with chat_server(rate) as server:
        fusion = fusion_of(models, server.url)
        first = judge_model(fusion, models[0], "pivot")
        assert len(server.requests) == 8
        answers, judgments = first.mt_bench
        assert not answers.reused and not judgments.reused
        assert judgments.metadata["costs"]["calls"] == 8
        again = judge_model(fusion, models[0], "pivot")
        assert all(artifact.reused for artifact in again.mt_bench)
        # Even when the store has lost them, what was paid for is there.
        discard(open_workplace().store, judgments.address)
        third = judge_model(fusion, models[0], "pivot")
        assert len(server.requests) == 8
        assert third.mt_bench[1].metadata["costs"] | {"retries": 0} == {
            "calls": 0,
            "retries": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "reused": 8,
        }
        # More judgments of each answer keep the one that there is.
        more = fusion_of(models, server.url, mt_bench={"judgments": 2})
        judge_model(more, models[0], "pivot")
        assert len(server.requests) == 16
    assert find_judged(open_workplace(), fusion, models[0], "pivot").mt_bench[0].address == answers.address


def test_models_stand_side_by_side_and_fastchat_reads_the_files(place: Path, models, tmp_path: Path) -> None:
    with chat_server(rate) as server:
        fusion = fusion_of(models, server.url, mt_bench={"pairwise": True})
        judged = {
            name: judge_model(fusion, model, name) for name, model in zip(("pivot", "other"), models, strict=True)
        }
        # Eight ratings each, and eight comparisons of the source in two orders.
        assert len(server.requests) == 32
    ratings, pairs = judged_tables(fusion, judged)
    assert (ratings.benchmark, pairs.benchmark) == ("mt_bench", "mt_bench_pairwise")
    assert [row.model for row in ratings.rows] == ["pivot", "other"] and ratings.baseline == "pivot"
    assert ratings.row("pivot").differences == {} and "mt_bench/overall" in ratings.row("other").differences
    assert ratings.row("pivot").unfinished_answers > 0
    assert ratings.costs.calls == 32
    assert [row.model for row in pairs.rows] == ["other"]
    assert pairs.row("other").means["mt_bench_pairwise/ties"].mean == 100.0
    copy_judged_files(fusion, judged, tmp_path / "files")
    shown = show_single(tmp_path / "files" / "model_judgment" / "judge_single.jsonl")
    for name in ("pivot", "other"):
        assert ratings.row(name).means["mt_bench/overall"].mean == pytest.approx(shown["overall"][name])
    counts = show_pairwise(tmp_path / "files" / "model_judgment" / "judge_pair.jsonl", "pivot")
    assert counts.loc["other", "tie"] == 8
    assert set(load_model_answers(tmp_path / "files" / "model_answer")) == {"pivot", "other"}
    assert set(ratings.measures("other")) == set(ratings.metrics)


def test_the_key_is_in_no_file(place: Path, models) -> None:
    with chat_server(rate) as server:
        judge_model(fusion_of(models, server.url), models[0], "pivot")
    assert server.keys == ["Bearer sk-very-secret"] * 8
    for path in place.rglob("*"):
        if path.is_file():
            assert b"sk-very-secret" not in path.read_bytes(), path


def test_addresses_follow_what_decides_and_not_what_hastens(place: Path, models) -> None:
    benchmark = load_mt_bench(SAMPLE)
    plain = fusion_of(models, "http://localhost:1/v1")

    def addresses(**evaluation) -> tuple[str, str]:
        fusion = fusion_of(models, "http://localhost:1/v1", **evaluation)
        return answers_address(fusion, models[1], benchmark), judgments_address(fusion, models[1], benchmark)

    before = answers_address(plain, models[1], benchmark), judgments_address(plain, models[1], benchmark)
    for hastening in ({"concurrency": 2}, {"timeout_seconds": 1.0}, {"retries": 0}):
        assert addresses(judge=hastening) == before
    for deciding in ({"model": "another"}, {"temperature": 0.5}, {"max_tokens": 5}):
        answers, judgments = addresses(judge=deciding)
        assert answers == before[0] and judgments != before[1]
    assert addresses(mt_bench={"judgments": 2})[0] == before[0]
    assert addresses(mt_bench={"judgments": 2})[1] != before[1]
    assert addresses(mt_bench={"pairwise": True})[1] != before[1]
    for deciding in ({"max_new_tokens": 7}, {"seed": 1}):
        assert addresses(mt_bench=deciding)[0] != before[0]
    assert set(before) <= judged_addresses(plain)


def test_models_left_out_cost_nothing_and_unknown_ones_are_named(place: Path, models) -> None:
    with chat_server(rate) as server:
        fusion = fusion_of(models, server.url, judged_models=["fused"])
        assert judge_model(fusion, models[1], "other").artifacts == ()
        assert judge_model(fusion, models[0], "pivot").artifacts != ()
    check_judged(fusion)
    with pytest.raises(ConfigError, match="'nobody'; there are pivot, other"):
        check_judged(fusion_of(models, server.url, judged_models=["nobody"]))
    with pytest.raises(EvaluationError, match="fuseline data mt-bench"):
        check_judged(fusion_of(models, server.url, mt_bench={"path": str(place)}))


def test_answering_holds_a_slot_of_the_device_and_judging_none(
    place: Path, models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpaca_files(tmp_path)
    under_way: list[str] = []
    taken: list[str] = []

    @contextmanager
    def concurrency(limit: str, **given: object) -> Iterator[None]:
        under_way.append(limit)
        taken.append(limit)
        yield
        under_way.remove(limit)

    def answer(body, number):
        assert not under_way
        return rate(body, number)

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("FUSELINE_DEVICE_LIMIT", "gpu")
    monkeypatch.setattr(sync, "concurrency", concurrency)
    with chat_server(answer) as server:
        fusion = fusion_of(models, server.url, alpaca_eval={"path": str(tmp_path), "max_new_tokens": 4})
        judge_model(fusion, models[0], "pivot")
        assert len(server.requests) > 8
        assert taken == ["gpu", "gpu"]
        # What the store holds needs no device.
        judge_model(fusion, models[0], "pivot")
        assert taken == ["gpu", "gpu"]


def alpaca_files(folder: Path) -> None:
    """Six instructions with a baseline's outputs, and the judge's prompt."""
    rows = [{"instruction": f"do {i}", "output": f"base {i}", "generator": "gpt4", "dataset": "d"} for i in range(6)]
    (folder / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    prompt = "<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n<|im_end|>\n"
    (folder / "alpaca_eval_clf.txt").write_text(prompt)


def test_alpaca_eval_is_published_and_scored(place: Path, models, tmp_path: Path) -> None:
    alpaca_files(tmp_path)
    with chat_server(lambda body, number: "m" if "M: base" in body["messages"][-1]["content"] else "M") as server:
        fusion = fusion_of(models, server.url, mt_bench=None, alpaca_eval={"path": str(tmp_path), "max_new_tokens": 4})
        judged = {"pivot": judge_model(fusion, models[0], "pivot")}
        assert len(server.requests) == 6
        judge_model(fusion, models[0], "pivot")
        assert len(server.requests) == 6
    [table] = judged_tables(fusion, judged)
    assert (table.benchmark, table.baseline) == ("alpaca_eval", "gpt4")
    assert table.row("pivot").means["alpaca_eval/win_rate"].mean == 100.0


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"mt_bench": {}}, "needs a judge"),
        ({"judge": {"model": "gpt-4"}}, "has nothing to judge"),
        ({"judged_models": ["fused"]}, "has nothing to judge"),
        ({"judge": {"model": "j", "base_url": "https://user:pass@host/v1"}, "mt_bench": {}}, "belongs into the env"),
        ({"judge": {"model": "j", "base_url": "localhost:8000"}, "mt_bench": {}}, "expected an address"),
        ({"judge": {"model": "j", "key_variable": "sk-abc"}, "mt_bench": {}}, "not a key"),
    ],
)
def test_settings_that_would_do_nothing_or_give_a_key_away_are_errors(evaluation, said: str) -> None:
    recipe = {
        "name": "recipe",
        "pivot": {"name": "pivot", "path": "p"},
        "sources": [{"name": "other", "path": "o"}],
        "dialogues": {"files": [{"path": "data.jsonl"}]},
        "evaluation": evaluation,
    }
    with pytest.raises(ValueError, match=said):
        FusionConfig.model_validate(recipe)
