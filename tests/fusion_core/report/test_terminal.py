"""The result in a sentence, and on a terminal."""

from rich.console import Console

from fusion_core.evaluation.score_table import Score
from fusion_core.report.headline import headline
from fusion_core.report.terminal import run_result


def test_headline_gives_the_signed_change(summary):
    scores = summary.scores
    fused, pivot = (scores.row(name).mean_of_domains.nats_per_byte for name in ("fused", "smol-8k"))
    (sentence,) = headline(summary)
    assert f"{100 * (pivot - fused) / pivot:.1f}\N{NO-BREAK SPACE}% less than smol-8k" in sentence
    worse = scores.row("fused").model_copy(update={"mean_of_domains": Score(nats_per_byte=2 * pivot)})
    table = scores.model_copy(update={"rows": (scores.row("smol-8k"), worse)})
    (sentence,) = headline(summary.model_copy(update={"scores": table}))
    assert "100.0\N{NO-BREAK SPACE}% more than smol-8k" in sentence


def test_the_terminal_shows_the_table(summary):
    console = Console(width=140, record=True, color_system=None)
    console.print(run_result(summary))
    text = console.export_text()
    for row in summary.scores.rows:
        assert row.model in text
        assert f"{row.overall.nats_per_byte:.4f}" in text
    assert "A specialist of mathematics" in text
    for line in headline(summary):
        assert line.split(":")[0] in text
