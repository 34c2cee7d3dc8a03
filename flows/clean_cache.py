"""Clean-up of the object store: what no registered model and no recipe in use needs goes."""

from __future__ import annotations

from prefect import flow

from tasks.clean_cache import Cleaned, clean
from tasks.recipe_names import RecipeName
from tasks.stages.stage_task import log_errors_plainly


@flow(name="clean-cache", flow_run_name="clean the cache")
def clean_cache(recipes: list[RecipeName] = [], delete: bool = False) -> Cleaned:  # noqa: B006
    """Show, and if asked delete, what no registered model and none of the recipes needs.

    Parameters
    ----------
    recipes
        Recipes in use; what they need is kept.
    delete
        Delete; without it nothing is touched.
    """
    log_errors_plainly()
    return clean(recipes, delete)
