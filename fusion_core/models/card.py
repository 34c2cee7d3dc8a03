"""The model card (README.md) of a fused model, written from its run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fusion_core.report.best import best_by_column
from fusion_core.report.charts import weight_grid
from fusion_core.report.formats import format_count, format_seconds
from fusion_core.report.headline import headline
from fusion_core.report.run_summary import MergeSummary, ModelRow, RunSummary

UNKNOWN_LICENSE = "unknown"
# Marks that would turn a name or a note into markup; a backslash or an entity keeps them text.
MARKUP = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    | {mark: f"\\{mark}" for mark in "\\`*_[]|#$!~"}
    | dict.fromkeys("\r\n", " ")
)
MERGE_METHODS = {
    "varm": "VaRM: each weight is a target's share of the squared change from the pivot (arXiv 2402.16107)",
    "linear": "a weighted mean of the targets",
    "task_arithmetic": "task arithmetic: the targets' changes are added to the pivot (arXiv 2212.04089)",
    "slerp": "SLERP: spherical interpolation of the targets",
    "ties": "TIES: trimmed changes with elected signs (arXiv 2306.01708)",
    "dare": "DARE: changes dropped at random and rescaled (arXiv 2311.03099)",
    "sce": "SCE: select by variance, calculate weights, erase minority signs (arXiv 2408.07990)",
}


def model_card(summary: RunSummary) -> str:
    """Write the card of the run's fused model as Markdown with Hugging Face front matter.

    Names and notes are untrusted text and stay text. What is not known, such as a licence, is said to be unknown.

    Returns
    -------
    str
        The content of README.md; the same for the same summary.
    """
    given = summary.models_of("pivot", "source")
    return _template().render(
        summary=summary,
        front_matter=_yaml(_front_matter(summary, given)),
        given=given,
        headline=headline(summary),
        best=best_by_column(summary.scores) if summary.scores else {},
        merge_method=MERGE_METHODS.get(summary.merge.method, summary.merge.method) if summary.merge else None,
        weights=weights_by_matrix(summary.merge) if summary.merge else {},
        recipe=_yaml(summary.recipe),
    )


def weights_by_matrix(merge: MergeSummary) -> dict[str, list[tuple[float, float, float]]]:
    """Summarise merge weights over the layers: for each matrix, and each target, mean, smallest and largest."""
    _, matrices, grid_TML = weight_grid(merge)
    return {
        matrix: [(float(np.nanmean(row)), float(np.nanmin(row)), float(np.nanmax(row))) for row in grid_TML[:, number]]
        for number, matrix in enumerate(matrices)
    }


def read_license(folder: Path) -> str | None:
    """Return the licence that a checkpoint folder states in its README's front matter, or None."""
    readme = folder / "README.md"
    try:
        text = readme.read_text(encoding="utf-8")
        if not text.startswith("---\n"):
            return None
        front_matter = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    value = front_matter.get("license") if isinstance(front_matter, dict) else None
    return value if isinstance(value, str) and value else None


def _front_matter(summary: RunSummary, given: tuple[ModelRow, ...]) -> dict[str, object]:
    licenses = {model.license for model in given}
    matter: dict[str, object] = {
        # The result may only be given on under terms that all its models allow, so one word is claimed only where
        # all of them say the same one.
        "license": next(iter(licenses)) if len(licenses) == 1 and None not in licenses else UNKNOWN_LICENSE,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fuseline", "model-fusion", "merge", "chat"],
    }
    hub_models = [model.origin for model in given if model.revision is not None]
    if hub_models:
        matter |= {"base_model": hub_models, "base_model_relation": "merge"}
    return matter


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fusion_core.models", "."),
        # The card is Markdown: escaping is the `text` filter's, which also knows Markdown's marks.
        autoescape=False,  # noqa: S701 (2026-11-20: no HTML)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "text": lambda value: str(value).translate(MARKUP),
        "count": format_count,
        "seconds": format_seconds,
        "grouped": lambda value: f"{value:,}",
    }
    return environment.get_template("model_card.md.jinja")
