"""A fusion started with the name of its recipe instead of a whole form."""

from __future__ import annotations

from prefect import flow

from flows.fusechat import fusechat
from tasks.recipe_names import RecipeName, load_named_recipe
from tasks.registry.register import FusionResult
from tasks.stages.stage_task import log_errors_plainly


@flow(name="fuse-recipe", flow_run_name="{recipe}")
def fuse_recipe(recipe: RecipeName = "demo") -> FusionResult:
    """Fuse as a recipe says; what the store holds already is not computed again.

    Parameters
    ----------
    recipe
        Name of a recipe in the folder FUSELINE_RECIPES, or path of its file.
    """
    log_errors_plainly()
    return fusechat(load_named_recipe(recipe))
