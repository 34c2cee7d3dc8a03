"""A sweep of a real fusion: what its fusions share is computed once, and the production's candidate stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_core.sweeps import Sweep
from tasks.runs.tracking import Tracking
from tasks.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("place", "prefect_server")]


def test_a_sweep_shares_stages_and_nests_its_runs(recipe_file: Path) -> None:
    from flows.ablate import ablate

    sweep = Sweep(name="weights", vary={"training.lm_weight": (0.2, 0.8)}, seeds=(0, 1))
    result = ablate(sweep, str(recipe_file))
    # Of 17 stages each, the four fusions share what comes before training and the scores of the three models (9), and
    # those of one seed the control and its score (2): 4 x 17 - 3 x 9 - 2 x 2.
    assert (result.work.fusions, result.work.stages, result.work.different) == (4, 68, 37)
    table = (result.folder / "sweep.md").read_text()
    assert "| lm_weight=0.2 |" in table and "±" in table
    assert (result.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    tracking = Tracking(Settings(), "fuseline")
    children = tracking.client.search_runs(
        [tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run}'", max_results=10
    )
    assert {child.data.tags["fuseline.variant"] for child in children} == {"lm_weight=0.2", "lm_weight=0.8"}
    assert len(children) == 4
    names = {model.name for model in tracking.client.search_registered_models()}
    assert names == {"small-weights"}
    assert ablate(sweep, str(recipe_file)).work.found == result.work.different
