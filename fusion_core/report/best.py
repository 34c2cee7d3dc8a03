"""What is emphasised in a score table."""

from __future__ import annotations

from fusion_core.evaluation.score_table import ScoreTable

ALL_BYTES = ""
MEAN_OF_DOMAINS = "="


def best_by_column(table: ScoreTable) -> dict[str, str]:
    """Return the model with the lowest score of each domain, of all bytes (key '') and of the mean (key '=')."""
    best = {domain: min(table.rows, key=lambda row: row.domains[domain].nats_per_byte) for domain in table.domains}
    best[ALL_BYTES] = min(table.rows, key=lambda row: row.overall.nats_per_byte)
    best[MEAN_OF_DOMAINS] = min(table.rows, key=lambda row: row.mean_of_domains.nats_per_byte)
    return {column: row.model for column, row in best.items()}
