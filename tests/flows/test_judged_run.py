"""MT-Bench inside a whole run: every model judged, in the summary, in FastChat's files, and never paid for twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.fusechat import fusechat
from fusion_core.config.judging import JudgeConfig, MtBenchConfig
from fusion_core.recipes import load_recipe
from tests.fusion_core.evaluation.chat_server import chat_server
from tests.fusion_core.evaluation.mt_bench.conftest import SAMPLE
from tests.fusion_core.evaluation.mt_bench.fastchat import show_single

JUDGED = ["stories", "fused"]


@pytest.mark.slow
def test_a_run_judges_its_models(place: Path, prefect_server: None, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    with chat_server(lambda body, number: f"Rating: [[{1 + number % 10}]]") as server:
        evaluation = recipe.evaluation.model_copy(
            update={
                "judge": JudgeConfig(model="judge", base_url=server.url, key_variable="TEST_JUDGE_KEY"),
                "mt_bench": MtBenchConfig(path=SAMPLE, max_new_tokens=5),
                "judged_models": ("fused",),
            }
        )
        config = recipe.model_copy(update={"evaluation": evaluation})
        files = fusechat(config).files
        assert len(server.requests) == 16
        again = fusechat(config).files
        assert len(server.requests) == 16 and again.computed == 0
    [table] = files.summary.judged
    assert [row.model for row in table.rows] == JUDGED
    shown = show_single(files.folder / "mt_bench" / "model_judgment" / "judge_single.jsonl")
    for name in JUDGED:
        assert table.row(name).means["mt_bench/overall"].mean == pytest.approx(shown["overall"][name])
    assert [row.stage for row in files.summary.stages].count("judge") == 4
    assert "mt_bench" in (files.folder / "report.html").read_text(encoding="utf-8")
