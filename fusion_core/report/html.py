"""The run's report: one HTML page with everything inline, to be opened without a network."""

from __future__ import annotations

from datetime import datetime
from functools import cache

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from fusion_core.report.best import best_by_column
from fusion_core.report.charts import loss_chart, merge_weight_charts, weights_outside_layers
from fusion_core.report.formats import format_bytes, format_count, format_seconds, format_share
from fusion_core.report.headline import headline
from fusion_core.report.run_summary import RunSummary


def render_report(summary: RunSummary) -> str:
    """Write a run's summary as one HTML page.

    Every name and note is escaped; the page loads nothing, runs no script, and is the same for the same summary.

    Returns
    -------
    str
        The page; save it as UTF-8.
    """
    merge = summary.merge
    # The charts are our own SVG with every text drawn as paths; nothing else is trusted as markup.
    return _template().render(
        summary=summary,
        headline=headline(summary),
        recipe_yaml=yaml.safe_dump(summary.recipe, sort_keys=False, allow_unicode=True, width=100),
        best=best_by_column(summary.scores) if summary.scores else {},
        losses=Markup(loss_chart(summary.curves)) if summary.curves else None,
        weight_maps=[(target, Markup(svg)) for target, svg in merge_weight_charts(merge)] if merge else [],
        outer_weights=weights_outside_layers(merge) if merge else {},
        own_tokenizers=models_with_own_tokenizer(summary),
    )


def models_with_own_tokenizer(summary: RunSummary) -> set[str]:
    """Return the names of the models whose tokenizer is known to differ from the pivot's."""
    pivots = {model.tokenizer_digest for model in summary.models_of("pivot")}
    return {model.name for model in summary.models if model.tokenizer_digest and model.tokenizer_digest not in pivots}


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fusion_core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "seconds": format_seconds,
        "signed": lambda value: f"{value:+.4f}".replace("-", "−"),
        "compact": lambda value: f"{value:+.3f}".replace("-", "−"),
        "moment": lambda text: datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip(),
        "grouped": lambda value: f"{value:,}",
    }
    environment.globals |= {"share": format_share}
    return environment.get_template("report.html.jinja")
