"""A sweep over any settings of a recipe, as one flow; stages that fusions share are computed once."""

from __future__ import annotations

from prefect import flow

from flows.fusechat import fusechat
from fusion_core.sweeps import Sweep, expand
from tasks.recipe_names import RecipeName, load_named_recipe
from tasks.stages.stage_task import log_errors_plainly
from tasks.sweep import SweepResult, conclude_sweep, nest, shared_work, sweep_run


@flow(name="ablate", flow_run_name="ablate {sweep.name}")
def ablate(sweep: Sweep, recipe: RecipeName = "demo") -> SweepResult:
    """Fuse every variant of a recipe with every seed, and compare the fused models.

    Parameters
    ----------
    sweep
        Which settings take which values.
    recipe
        Name of a recipe in the folder FUSELINE_RECIPES, or path of its file.
    """
    log_errors_plainly()
    cells = expand(sweep, load_named_recipe(recipe))
    work = shared_work(cells)
    with sweep_run(sweep.name, cells) as run:
        rows = [row for cell in cells for row in nest(cell, fusechat(cell.config), run)]
        return conclude_sweep(sweep.name, cells, rows, work, run)
