"""Writes the figures of `results/` into docs/evidence.md and the README, so that no number there is typed by hand.

    python -m experiments.evidence

Between `<!-- figures NAME -->` and `<!-- end -->` a page holds what FIGURES makes of a table's results.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from experiments.results import Difference, Results, summary
from experiments.tables import FUSED, PIVOT
from fusion_core.report.sweep_table import OVERALL, as_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGES = (ROOT / "docs" / "evidence.md", ROOT / "README.md")
BLOCK = re.compile(r"<!-- figures ([\w ]+) -->.*?<!-- end -->", re.DOTALL)


def load(name: str) -> Results:
    """Read one table's committed results."""
    return Results.model_validate_json((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


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
        mean = cells[OVERALL]
        shown = [_bold(_thousandths(mean.seeds.mean), _certain(mean)), _seeds(mean), _span(mean.low, mean.high)]
        shown += [
            f"{_thousandths(cells[name].seeds.mean)} {_span(cells[name].low, cells[name].high)}" for name in domains
        ]
        lines.append(f"| {pair[0]} − {pair[1]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def headline(results: Results) -> str:
    """What the fused model gains over each rival, in percent of the rival's nats per byte."""
    cells = summary(results)
    lines = [
        "| fused model against | nats per byte, mean of the domains | over seeds | over dialogues |",
        "|---|---:|---:|---:|",
    ]
    for one in results.differences:
        if one.label == FUSED and one.domain == OVERALL:
            rival = cells[one.baseline][OVERALL].mean
            low, high = (None, None) if one.seeds.low is None else (one.seeds.low / rival, one.seeds.high / rival)
            over_seeds = "one seed" if low is None else f"{100 * low:+.1f} to {100 * high:+.1f} %"
            lines.append(
                f"| {_name(one.baseline)} | {100 * one.seeds.mean / rival:+.1f} % | {over_seeds} | "
                f"{100 * one.low / rival:+.1f} to {100 * one.high / rival:+.1f} % |"
            )
    return "\n".join(lines)


def _name(label: str) -> str:
    return f"the {label}" if label == PIVOT else label


def _certain(one: Difference) -> bool:
    same_side = one.low * one.high > 0
    return same_side and one.seeds.low is not None and one.seeds.high is not None and one.seeds.low * one.seeds.high > 0


def _thousandths(value: float) -> str:
    return f"{1000 * value:+.1f}"


def _span(low: float, high: float) -> str:
    return f"({1000 * low:+.1f} to {1000 * high:+.1f})"


def _seeds(one: Difference) -> str:
    return "one seed" if one.seeds.low is None or one.seeds.high is None else _span(one.seeds.low, one.seeds.high)


def _bold(text: str, is_certain: bool) -> str:
    return f"**{text}**" if is_certain else text


FORMS: dict[str, Callable[[Results], str]] = {"scores": scores, "compared": compared, "headline": headline}


def with_figures(page: str) -> str:
    """Return a page with every block of figures written anew; a block is named `<table> <form>`."""

    def fill(match: re.Match[str]) -> str:
        table, form = match[1].split()
        return f"<!-- figures {match[1]} -->\n\n{FORMS[form](load(table))}\n\n<!-- end -->"

    return BLOCK.sub(fill, page)


def main() -> None:
    for page in PAGES:
        page.write_text(with_figures(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
