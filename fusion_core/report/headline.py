"""A run's result in sentences, for the report, the model card and the terminal."""

from __future__ import annotations

from fusion_core.evaluation.score_table import ScoreRow
from fusion_core.report.run_summary import RunSummary


def headline(summary: RunSummary) -> list[str]:
    """Say how the result compares with pivot and control, in nats per response byte over the mean of the domains.

    Returns
    -------
    list of str
        One plain sentence each; empty without scores or without a fused model or target among them.
    """
    table = summary.scores
    if table is None:
        return []
    results = summary.models_of("fused") or summary.models_of("target")
    scored = {row.model: row for row in table.rows}
    sentences = []
    for result in results:
        if result.name not in scored:
            continue
        row = scored[result.name]
        rivals = [scored[model.name] for model in summary.models_of("pivot", "control") if model.name in scored]
        parts = [_against(row, rival) for rival in rivals]
        sentences.append(
            f"{row.model} has {row.mean_of_domains.nats_per_byte:.4f} nats per byte on held-out responses (mean of "
            f"{len(table.domains)} domains): {' and '.join(parts)}."
            if parts
            else f"{row.model} has {row.mean_of_domains.nats_per_byte:.4f} nats per byte on held-out responses."
        )
    return sentences


def _against(row: ScoreRow, rival: ScoreRow) -> str:
    ours, theirs = row.mean_of_domains.nats_per_byte, rival.mean_of_domains.nats_per_byte
    change = 100 * (ours - theirs) / theirs
    word = "less" if change < 0 else "more"
    return f"{abs(change):.1f}\N{NO-BREAK SPACE}% {word} than {rival.model} ({theirs:.4f})"
