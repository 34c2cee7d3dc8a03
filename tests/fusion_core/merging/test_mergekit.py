"""mergekit's YAML is translated, or refused where it would mean something else here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusion_core.errors import MergeError
from fusion_core.merging import MergeSpec, read_mergekit_config


def read(tmp_path: Path, text: str) -> tuple[Path, list[Path], MergeSpec]:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    return read_mergekit_config(tmp_path / "config.yaml")


def test_task_vectors_with_weights_and_densities_of_each_model(tmp_path: Path) -> None:
    text = """
models:
  - model: base
  - model: maths
    parameters: {density: 0.5, weight: 0.3}
  - model: code
    parameters: {weight: 0.7}
merge_method: METHOD
base_model: base
parameters:
  density: 0.9
  int8_mask: true
  lambda: 0.8
dtype: bfloat16
"""
    common: dict[str, Any] = {"weights": (0.3, 0.7), "density": (0.5, 0.9), "scaling_coefficient": 0.8}
    for method, expected in {
        "ties": {"method": "ties", "normalize": True},
        "dare_ties": {"method": "dare", "dare_variant": "ties", "normalize": False},
        "dare_linear": {"method": "dare", "dare_variant": "linear", "normalize": False},
    }.items():
        pivot, targets, spec = read(tmp_path, text.replace("METHOD", method))
        assert (pivot, targets) == (Path("base"), [Path("maths"), Path("code")])
        assert spec == MergeSpec(**common, **expected, dtype="bfloat16")


def test_linear_takes_all_models(tmp_path: Path) -> None:
    text = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]\nmerge_method: linear\n"
    assert read(tmp_path, text) == (
        Path("a"),
        [Path("a"), Path("b")],
        MergeSpec(method="linear", weights=(1, 3), normalize=True),
    )


def test_slerp_goes_from_the_base_to_the_other(tmp_path: Path) -> None:
    text = """
slices:
  - sources:
      - {model: a, layer_range: [0, 32]}
      - {model: b, layer_range: [0, 32]}
merge_method: slerp
base_model: b
parameters: {t: 0.3}
"""
    assert read(tmp_path, text) == (Path("b"), [Path("b"), Path("a")], MergeSpec(method="slerp", t=0.3))


def test_sce_and_task_arithmetic(tmp_path: Path) -> None:
    text = "models: [{model: a}, {model: b}]\nmerge_method: sce\nbase_model: p\nparameters: {select_topk: 0.1}\n"
    assert read(tmp_path, text) == (Path("p"), [Path("a"), Path("b")], MergeSpec(method="sce", select_top_k=0.1))
    text = (
        "models: [{model: a}, {model: b}]\nmerge_method: task_arithmetic\nbase_model: p\n"
        "parameters: {weight: 0.5, normalize: true}\ntokenizer_source: base\n"
    )
    spec = MergeSpec(method="task_arithmetic", weights=(0.5, 0.5), normalize=True)
    assert read(tmp_path, text) == (Path("p"), [Path("a"), Path("b")], spec)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("merge_method: passthrough\nmodels: [{model: a}]", "'passthrough' is not known here"),
        ("merge_method: ties\nmodels: [{model: a}]", "needs a base_model"),
        ("merge_method: linear\nmodels: [{model: a}]", "needs a weight for every model"),
        ("merge_method: sce\nbase_model: a\nmodels: [{model: a}]", "no model to merge besides"),
        ("merge_method: sce\nbase_model: p\nmodels: [{model: a+adapter}]", "only a local checkpoint folder"),
        ("merge_method: sce\nbase_model: p\nmodels: [{model: a}]\ntokenizer: {source: union}", "tokenizer cannot be"),
        (
            "merge_method: sce\nbase_model: p\nmodels: [{model: a}]\ntokenizer_source: union",
            "has the pivot's tokenizer",
        ),
        (
            "merge_method: sce\nbase_model: p\nmodels: [{model: a, parameters: {select_topk: 0.1}}]",
            "has no place there",
        ),
        ("merge_method: sce\nbase_model: p\nmodels: [{model: a}]\nparameters: {select_topk: 2}", "less than or equal"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0, 1]}", "gradients and filters"),
        ("merge_method: ties\nbase_model: p\nmodels: [{model: a, parameters: {weight: 1, rescale: true}}]", "no place"),
        ("merge_method: linear\nslices: [{sources: [{model: a}]}, {sources: [{model: a}]}]", "only one slice"),
        ("- 1", "it has no keys"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_would_mean_something_else_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(MergeError, match=problem) as caught:
        read(tmp_path, text)
    assert "config.yaml" in str(caught.value)
