"""The run's report: one HTML page with everything inline, to be opened without a network."""

from __future__ import annotations

from datetime import datetime
from functools import cache

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from fusion_core.evaluation.judged_scores import JudgedTable, higher_is_better
from fusion_core.evaluation.published_scores import published_scores
from fusion_core.report.best import best_by_column
from fusion_core.report.charts import loss_chart, merge_weight_charts, weights_outside_layers
from fusion_core.report.costs import costs_by_stage
from fusion_core.report.formats import (
    format_bytes,
    format_count,
    format_figure,
    format_hours,
    format_seconds,
    format_share,
    format_signed,
)
from fusion_core.report.headline import headline
from fusion_core.report.radar import TITLES, radar_charts
from fusion_core.report.run_summary import RunSummary

# A token that became this much likelier or unlikelier, in nats, is marked weakly, plainly, strongly.
LEAST_MARKED_NATS = (0.25, 1.0, 2.5)


def render_report(summary: RunSummary) -> str:
    """Write a run's summary as one HTML page.

    Every name and note is escaped; the page loads nothing, runs no script, and is the same for the same summary.

    Returns
    -------
    str
        The page; save it as UTF-8.
    """
    merge = summary.merge
    # The charts are our own SVG, whose texts are escaped or drawn as paths; nothing else is trusted as markup.
    return _template().render(
        summary=summary,
        headline=headline(summary),
        recipe_yaml=yaml.safe_dump(summary.recipe, sort_keys=False, allow_unicode=True, width=100),
        best=best_by_column(summary.scores) if summary.scores else {},
        losses=Markup(loss_chart(summary.curves)) if summary.curves else None,  # noqa: S704 (2026-11-20)
        weight_maps=[
            (target, Markup(svg))  # noqa: S704 (2026-11-20)
            for target, svg in (merge_weight_charts(merge) if merge else ())
        ],
        outer_weights=weights_outside_layers(merge) if merge else {},
        own_tokenizers=models_with_own_tokenizer(summary),
        radars=radar_charts(summary),
        costs=costs_by_stage(summary),
        published=published_scores(),
    )


def benchmark_title(name: str) -> str:
    """Return how a judged benchmark is written."""
    return TITLES.get(name, name.replace("_", " "))


def judged_best(table: JudgedTable, metric: str) -> str | None:
    """Return the model with the best mean of a judged metric; None where none has one or no mean is better."""
    means = {row.model: mean for row in table.rows if (mean := row.means[metric].mean) is not None}
    higher = higher_is_better(metric)
    if not means or higher is None:
        return None
    return (max if higher else min)(means, key=lambda model: means[model])


def mark_of(change: float | None) -> str:
    """Return the style of a piece of text: g for a gain, l for a loss, 1 to 3 by how much; empty where it is small."""
    if change is None or abs(change) < LEAST_MARKED_NATS[0]:
        return ""
    level = sum(abs(change) >= nats for nats in LEAST_MARKED_NATS)
    return f"{'g' if change < 0 else 'l'}{level}"


def models_with_own_tokenizer(summary: RunSummary) -> set[str]:
    """Return the names of the models whose tokenizer is known to differ from the pivot's."""
    pivots = {model.tokenizer_digest for model in summary.models_of("pivot")}
    return {model.name for model in summary.models if model.tokenizer_digest and model.tokenizer_digest not in pivots}


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fusion_core.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "seconds": format_seconds,
        "signed": lambda value: format_signed(value, 4),
        "compact": lambda value: format_signed(value, 3),
        "hundredths": lambda value: format_signed(value, 2),
        "figure": format_figure,
        "benchmark_title": benchmark_title,
        "signed_figure": lambda value, is_share: format_signed(
            100 * value if is_share else value, 1 if is_share else 3
        ),
        "hours": format_hours,
        "money": lambda value: f"{value:,.2f}",
        "mark": mark_of,
        "part": lambda metric: metric.partition("/")[2].replace("_", " "),
        "moment": lambda text: datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip(),
        "grouped": lambda value: f"{value:,}",
    }
    environment.globals |= {"share": format_share, "judged_best": judged_best}
    return environment.get_template("report.html.jinja")
