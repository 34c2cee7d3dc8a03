"""The score table on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusion_core.evaluation.score_table import Score, ScoreTable
from fusion_core.report.best import best_by_column
from fusion_core.report.headline import headline
from fusion_core.report.run_summary import RunSummary


def score_table(table: ScoreTable, roles: dict[str, str] | None = None) -> Table:
    """Return held-out scores as a terminal table: the best of each column in bold, differences to the baseline below.

    The intervals themselves are in the report; here a star marks a difference whose interval excludes zero.

    Parameters
    ----------
    table : ScoreTable
    roles : dict, optional
        Model name to its role in the run.
    """
    best = best_by_column(table)
    view = Table(
        title="Held-out nats per response byte (lower is better)",
        title_justify="left",
        title_style="bold",
        caption=Text(
            f"Below each score: the difference to {table.baseline}; * where its 95 % interval (paired bootstrap over "
            "dialogues) excludes zero."
        ),
        caption_justify="left",
        show_lines=True,
    )
    view.add_column("model", overflow="fold")
    view.add_column("mean of domains", justify="right")
    for domain in table.domains:
        view.add_column(Text(f"{domain}\n{table.dialogues[domain]:,} dialogues"), justify="right")
    view.add_column("all bytes", justify="right")
    for row in table.rows:
        role = (roles or {}).get(row.model)
        view.add_row(
            Text(row.model, style="bold" if role == "fused" else "").append(f"\n{role}" if role else "", style="dim"),
            _cell(row.mean_of_domains, best["="] == row.model),
            *(_cell(row.domains[domain], best[domain] == row.model) for domain in table.domains),
            _cell(row.overall, best[""] == row.model),
        )
    return view


def run_result(summary: RunSummary) -> RenderableType:
    """Return what the terminal shows at the end of a run: what the models are, the score table and the result."""
    lines = [f"{model.name} ({model.role}): {model.note}" for model in summary.models if model.note]
    parts: list[RenderableType] = [Text(line, style="dim") for line in lines]
    if summary.scores is not None:
        parts.append(score_table(summary.scores, {model.name: model.role for model in summary.models}))
    parts += [Text(sentence, style="bold") for sentence in headline(summary)]
    return Group(*parts)


def _cell(score: Score, is_best: bool) -> Text:
    cell = Text(f"{score.nats_per_byte:.4f} ", style="bold" if is_best else "")
    if score.difference is None:
        return cell
    if score.low is None or score.high is None or score.low <= 0 <= score.high:
        return cell.append(f"\n{score.difference:+.4f} ", style="dim")
    return cell.append(f"\n{score.difference:+.4f}*", style="green" if score.high < 0 else "red")
