"""lm-eval on a real small model with tasks and data of our own; without lm-eval, a plain error."""

import json
from pathlib import Path

import pytest
import torch

from fusion_core.config import EvaluationConfig, ModelConfig
from fusion_core.config.benchmarks import LmEvalConfig
from fusion_core.errors import ConfigError
from fusion_core.evaluation import suites
from fusion_core.evaluation.benchmarks import benchmarks_of
from fusion_core.models.identity import resolve_model

STORIES = Path(__file__).resolve().parents[2] / "data" / "stories260k"
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""


def test_without_lm_eval_the_recipe_s_error_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "find_spec", lambda name: None)
    config = EvaluationConfig.model_validate({"lm_eval": {"tasks": [{"name": "arc_easy"}]}})
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '\.\[lm-eval\]'"):
        benchmarks_of(config)


@pytest.mark.slow
def test_a_task_of_our_own_runs_on_a_real_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    animals = ("cat", "dog", "girl", "boy", "bird", "fish")
    rows = [
        {"question": f"Once upon a time there was a {one}. The {one} was very", "choices": ["happy", "qzx"], "gold": 0}
        for one in animals
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny_choice.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"), encoding="utf-8")
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }} {% endfor %}", encoding="utf-8")
    model = resolve_model(ModelConfig(name="stories", path=STORIES, chat_template=template))
    config = LmEvalConfig.model_validate(
        {"tasks": [{"name": "tiny_choice", "few_shot": 1, "limit": 5}, {"name": "no_such_task"}], "include_path": tasks}
    )
    result = suites.score_lm_eval(model, config, config.tasks[0], torch.device("cpu"))
    assert result.metrics[0].name == "lm_eval/tiny_choice.acc"
    # A model of children's stories prefers a word to letters.
    assert result.metrics[0].mean == 1.0
    assert (result.few_shot, len(result.items)) == (1, 5)
    assert result.version.startswith("2.0 (lm-eval ")
    with pytest.raises(ConfigError, match="no_such_task"):
        suites.score_lm_eval(model, config, config.tasks[1], torch.device("cpu"))
