"""The report's charts as pictures of their own, which MLflow's pages show."""

from __future__ import annotations

from fusion_core.report.charts import loss_chart, merge_weight_charts
from fusion_core.report.run_summary import RunSummary
from tasks.runs.tracking import Tracking

# In the report the page gives these colours; a picture alone has no page.
COLOURS = {
    "currentColor": "#1f2328",
    "var(--rule)": "#d0d7de",
    "var(--series-1)": "#2563eb",
    "var(--series-2)": "#d97706",
    "var(--series-3)": "#059669",
    "var(--series-4)": "#db2777",
    "var(--series-5)": "#7c3aed",
    "var(--series-6)": "#64748b",
}


def log_plots(tracking: Tracking, run_id: str | None, summary: RunSummary) -> None:
    """Log loss curves and merge weights below ``plots/`` of a run."""
    charts = {"loss": loss_chart(summary.curves)} if summary.curves else {}
    if summary.merge is not None:
        charts |= {f"merge weights of {target}": svg for target, svg in merge_weight_charts(summary.merge)}
    for name, svg in charts.items():
        tracking.log_text(run_id, picture(svg), f"plots/{name}.svg")


def picture(svg: str) -> str:
    """Return an SVG that stands alone, on white."""
    for name, colour in COLOURS.items():
        svg = svg.replace(name, colour)
    if "xmlns=" not in svg.partition(">")[0]:
        svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return svg.replace("<svg", '<svg style="background: white"', 1)
