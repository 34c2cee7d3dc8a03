"""Evaluation alone: the held-out scores of a recipe's models and of what was made from them."""

from __future__ import annotations

from prefect import flow

from fusion_core.evaluation.score_table import ScoreTable
from tasks.recipe_names import RecipeName, load_named_recipe
from tasks.resolve import resolve_fusion
from tasks.stages.stage_task import log_errors_plainly
from tasks.store.workplace import open_workplace
from tasks.stored_fusion import StoredFusion


@flow(name="evaluate", flow_run_name="evaluate {recipe}")
def evaluate(recipe: RecipeName = "demo") -> ScoreTable:
    """Score a recipe's models and every checkpoint the store holds of it, on the held-out dialogues.

    Parameters
    ----------
    recipe
        Name of a recipe in the folder FUSELINE_RECIPES, or path of its file.
    """
    log_errors_plainly()
    return StoredFusion(resolve_fusion(load_named_recipe(recipe)), open_workplace()).evaluate()
