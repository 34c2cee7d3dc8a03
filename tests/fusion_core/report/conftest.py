"""The summary of a run with every part, and its report."""

import pytest

from fusion_core.report.html import render_report
from fusion_core.report.run_summary import RunSummary
from tests.fusion_core.run_example import example_summary


@pytest.fixture(scope="session")
def summary() -> RunSummary:
    return example_summary()


@pytest.fixture(scope="session")
def page(summary) -> str:
    return render_report(summary)
