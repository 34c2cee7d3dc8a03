"""Radar charts as inline SVG: one axis a domain or category, one line a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fusion_core.evaluation.judged_scores import JudgedTable
from fusion_core.report.run_summary import RunSummary

WIDTH, RADIUS = 420.0, 120.0
CENTRE_X, CENTRE_Y = WIDTH / 2, 150.0
MARGIN = 24.0
FEWEST_AXES = 3
TITLES = {"mt_bench": "MT-Bench", "mt_bench_pairwise": "MT-Bench, pairwise", "alpaca_eval": "AlpacaEval 2.0"}
RINGS = 4
LONGEST_LABEL = 22
# Lines differ by dashes too: colours alone are lost in print and to some eyes.
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2")
# As many as the page has colours for.
MOST_SERIES = 6


@dataclass(frozen=True)
class Radar:
    """A chart with its legend and what its rings mean.

    Parameters
    ----------
    title, note : str
    svg : Markup
    models : tuple of (name, number of its colour, dashes)
    """

    title: str
    note: str
    svg: Markup
    models: tuple[tuple[str, int, str], ...]


def radar_charts(summary: RunSummary) -> list[Radar]:
    """Draw what the run has: held-out scores by domain, judged scores by category.

    Specialised sources lie so far from the pivot that what fusion changed would shrink to nothing beside them, so a
    second chart by domain shows the run's own models alone.

    Returns
    -------
    list of Radar
        Without those that have fewer than three axes.
    """
    results = summary.models_of("fused") or summary.models_of("target")
    pivots, sources = summary.models_of("pivot"), summary.models_of("source")
    everyone = [model.name for model in (*results, *pivots, *sources)]
    own = [model.name for model in (*results, *pivots, *summary.models_of("control", "target"))]
    charts = [
        _by_domain(summary, "By domain: what was fused", everyone),
        _by_domain(summary, "By domain: what was made of the pivot", list(dict.fromkeys(own))),
        *(_by_category(table, everyone) for table in summary.judged),
    ]
    return [chart for chart in charts if chart is not None]


def _by_domain(summary: RunSummary, title: str, names: Sequence[str]) -> Radar | None:
    table = summary.scores
    if table is None or len(table.domains) < FEWEST_AXES:
        return None
    scored = {row.model: row for row in table.rows}
    baseline = scored.get(table.baseline)
    series = {
        name: [
            100 * baseline.domains[domain].nats_per_byte / scored[name].domains[domain].nats_per_byte
            for domain in table.domains
        ]
        for name in names
        if name in scored and baseline is not None
    }
    if not series:
        return None
    values = [value for several in series.values() for value in several]
    low, high, step = _round_range(min(values), max(values))
    return _chart(
        title,
        f"{table.baseline}'s nats per byte in percent of the model's: farther out is better, {table.baseline} is at "
        f"100 everywhere. The centre is {low:g}, rings are {step:g} apart.",
        table.domains,
        series,
        low,
        high,
    )


def _by_category(table: JudgedTable, names: Sequence[str]) -> Radar | None:
    categories = table.categories
    if len(categories) < FEWEST_AXES:
        return None
    rows = {row.model: row for row in table.rows}
    series = {}
    for name in names:
        means = [rows[name].means[category].mean for category in categories] if name in rows else []
        known = [mean for mean in means if mean is not None]
        # A line with a gap would be read as a zero.
        if means and len(known) == len(means):
            series[name] = known
    if not series:
        return None
    return _chart(
        f"{TITLES.get(table.benchmark, table.benchmark)} by category",
        f"Judged by {table.judge}: 1 at the centre, 10 at the rim.",
        [category.partition("/")[2] for category in categories],
        series,
        1.0,
        10.0,
        rings=3,
    )


def _round_range(smallest: float, largest: float) -> tuple[float, float, float]:
    """Return a centre below, a rim above and the distance of the rings, all round numbers."""
    for step in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0, 25.0, 50.0, 100.0, 250.0, 1000.0):
        low = max(0.0, math.floor(smallest / step - 0.5) * step)
        if low + RINGS * step >= largest:
            return low, low + RINGS * step, step
    return 0.0, largest, largest / RINGS


def _chart(
    title: str,
    note: str,
    axes: Sequence[str],
    series: Mapping[str, Sequence[float]],
    low: float,
    high: float,
    rings: int = RINGS,
) -> Radar:
    angles = [2 * math.pi * index / len(axes) - math.pi / 2 for index in range(len(axes))]
    parts = []
    for ring in range(1, rings + 1):
        points = " ".join(_point(angle, ring / rings) for angle in angles)
        parts.append(Markup('<polygon points="{}" class="ring"/>').format(points))
        value = low + (high - low) * ring / rings
        x, y = _at(angles[0], ring / rings)
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" class="tick">{:g}</text>').format(x + 3, y + 3, round(value, 2))
        )
    for angle, label in zip(angles, axes, strict=True):
        x, y = _at(angle, 1)
        parts.append(
            Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="ring"/>').format(
                CENTRE_X, CENTRE_Y, x, y
            )
        )
        x, y = _at(angle, 1.13)
        anchor = "middle" if abs(math.cos(angle)) < 0.3 else "start" if math.cos(angle) > 0 else "end"
        short = label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y + 4, anchor, short))
    models = []
    for number, (name, values) in enumerate(list(series.items())[:MOST_SERIES]):
        shares = [min(1.0, max(0.0, (value - low) / (high - low))) for value in values]
        points = " ".join(_point(angle, share) for angle, share in zip(angles, shares, strict=True))
        dashes = DASHES[number]
        parts.append(
            Markup('<polygon points="{}" class="line" style="stroke: var(--series-{})" stroke-dasharray="{}"/>').format(
                points, number + 1, dashes
            )
        )
        models.append((name, number + 1, dashes))
    body = Markup("").join(parts)
    heights = [_at(angle, 1.13)[1] for angle in angles]
    top, height = min(heights) - MARGIN, max(heights) - min(heights) + 2 * MARGIN
    svg = Markup('<svg class="radar" viewBox="0 {:.0f} {:g} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        top, WIDTH, height, escape(title), body
    )
    return Radar(title, note, svg, tuple(models))


def _at(angle: float, share: float) -> tuple[float, float]:
    return CENTRE_X + RADIUS * share * math.cos(angle), CENTRE_Y + RADIUS * share * math.sin(angle)


def _point(angle: float, share: float) -> str:
    x, y = _at(angle, share)
    return f"{x:.1f},{y:.1f}"
