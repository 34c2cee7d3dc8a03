"""Writes the figures of `results/` into the pages that show them, and draws the plots: no table is typed by hand.

    python -m experiments.evidence

Between `<!-- figures NAME -->` and `<!-- end -->` a page holds what FORMS makes of a table's results.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from experiments.answers import AnswersResults
from experiments.coverage import AlignmentResults
from experiments.plots import PLOTS, draw
from experiments.results import Difference, Results, summary
from experiments.tables import FUSED, JOINT, JOINT_SOUP, PIVOT, SELF, SFT, SOUP
from fusion_core.record import Record
from fusion_core.report.sweep_table import MEAN_OF_DOMAINS, as_markdown

Kind = TypeVar("Kind", bound=Record)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGES = (ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence-tables.md", ROOT / "README.md")
HEADLINE = (
    *((FUSED, one) for one in (PIVOT, SFT, SELF, SOUP)),
    *((JOINT, one) for one in (PIVOT, SFT, SELF)),
    (JOINT_SOUP, SOUP),
)
BLOCK = re.compile(r"<!-- figures ([\w ]+) -->.*?<!-- end -->", re.DOTALL)


def scores(results: Results) -> str:
    """Every model's nats per byte, mean over seeds and its interval."""
    return as_markdown(summary(results)).strip()


def compared(results: Results) -> str:
    """The differences, in thousandths of a nat per byte; bold where both intervals of the mean leave zero out."""
    domains = list(results.dialogues)
    lines = [
        f"| less is better: first, minus second | mean | over seeds | over dialogues | {' | '.join(domains)} |",
        "|---|" + "---:|" * (3 + len(domains)),
    ]
    for pair in dict.fromkeys((one.label, one.baseline) for one in results.differences):
        cells = {one.domain: one for one in results.differences if (one.label, one.baseline) == pair}
        mean = cells[MEAN_OF_DOMAINS]
        shown = [_bold(_thousandths(mean.seeds.mean), _certain(mean)), _seeds(mean), _span(mean.low, mean.high)]
        shown += [
            f"{_thousandths(cells[name].seeds.mean)} {_span(cells[name].low, cells[name].high)}" for name in domains
        ]
        lines.append(f"| {pair[0]} − {pair[1]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def headline(results: Results) -> str:
    """The differences that a user asks for first, in percent of the second model's nats per byte."""
    cells = summary(results)
    means = {(one.label, one.baseline): one for one in results.differences if one.domain == MEAN_OF_DOMAINS}
    lines = [
        "| nats per byte, mean of the domains | difference | over seeds | over dialogues |",
        "|---|---:|---:|---:|",
    ]
    for pair in HEADLINE:
        if pair in means:
            one, rival = means[pair], cells[pair[1]][MEAN_OF_DOMAINS].mean
            seeds = _percent(rival, one.seeds.low, one.seeds.high)
            lines.append(
                f"| {pair[0]} against {pair[1]} | {100 * one.seeds.mean / rival:+.1f} % | {seeds} | "
                f"{_percent(rival, one.low, one.high)} |"
            )
    return "\n".join(lines)


def _percent(of: float, low: float | None, high: float | None) -> str:
    return "one run" if low is None or high is None else f"{100 * low / of:+.1f} to {100 * high / of:+.1f} %"


def _certain(one: Difference) -> bool:
    same_side = one.low * one.high > 0
    return same_side and one.seeds.low is not None and one.seeds.high is not None and one.seeds.low * one.seeds.high > 0


def _thousandths(value: float) -> str:
    return f"{1000 * value:+.1f}"


def _span(low: float, high: float) -> str:
    return f"({1000 * low:+.1f} to {1000 * high:+.1f})"


def _seeds(one: Difference) -> str:
    return "one run" if one.seeds.low is None or one.seeds.high is None else _span(one.seeds.low, one.seeds.high)


def _bold(text: str, is_certain: bool) -> str:
    return f"**{text}**" if is_certain else text


def alignments(results: AlignmentResults) -> str:
    """Every way of alignment: what it covers, what of the source's mass it keeps, and what the next token gets."""
    sources = list(dict.fromkeys(row.source for row in results.rows))
    lines = [
        "| alignment | " + " | ".join(f"{one}: covered | mass kept | next token | won" for one in sources) + " |",
        "|---|" + "---:|" * 4 * len(sources),
    ]
    for label in dict.fromkeys(row.label for row in results.rows):
        rows = {row.source: row for row in results.rows if row.label == label}
        each = [rows[one] for one in sources]
        shown = [f"{one.covered:.3f} | {one.mass_kept:.3f} | {one.gold:.3f} | {one.won:.2f}" for one in each]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def answers(results: AnswersResults) -> str:
    """Every model's right answers of all that were asked, and how many answers were cut off."""
    metrics = list(dict.fromkeys(row.metric for row in results.rows))
    lines = [f"| model | {' | '.join(metrics)} |", "|---|" + "---:|" * len(metrics)]
    for label in dict.fromkeys(row.label for row in results.rows):
        rows = {row.metric: row for row in results.rows if row.label == label}
        shown = [f"{rows[one].right} of {rows[one].items} ({rows[one].unfinished} cut off)" for one in metrics]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


# What a block may show, and of which results.
FORMS: dict[str, tuple[type[Record], Callable[[Any], str]]] = {
    "scores": (Results, scores),
    "compared": (Results, compared),
    "headline": (Results, headline),
    "alignments": (AlignmentResults, alignments),
    "answers": (AnswersResults, answers),
}


def load(name: str, kind: type[Kind]) -> Kind:
    """Read one table's committed results."""
    return kind.model_validate_json((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def with_figures(page: str) -> str:
    """Return a page with every block of figures written anew; a block is named `<table> <form>`."""

    def fill(match: re.Match[str]) -> str:
        table, form = match[1].split()
        kind, show = FORMS[form]
        return f"<!-- figures {match[1]} -->\n\n{show(load(table, kind))}\n\n<!-- end -->"

    return BLOCK.sub(fill, page)


def main() -> None:
    for page in PAGES:
        page.write_text(with_figures(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw({name: load(name, Results) for name in PLOTS})


if __name__ == "__main__":
    main()
