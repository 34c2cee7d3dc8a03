"""A fusion's targets merged in another way."""

from __future__ import annotations

from prefect import flow

from flows.fusechat import fusechat
from fusion_core.merge_spec import MergeSpec
from fusion_core.sweeps import with_settings
from tasks.recipe_names import RecipeName, load_named_recipe
from tasks.registry.register import FusionResult
from tasks.stages.stage_task import log_errors_plainly


@flow(name="merge", flow_run_name="merge {recipe}")
def merge(recipe: RecipeName = "demo", merge: MergeSpec = MergeSpec()) -> FusionResult:  # noqa: B008
    """Merge the targets of a recipe again with other settings; only merge and scores are computed.

    Parameters
    ----------
    recipe
        Name of a recipe in the folder FUSELINE_RECIPES, or path of its file.
    merge
        The method and its settings, in place of the recipe's.
    """
    log_errors_plainly()
    given = merge.model_dump(mode="json", exclude_unset=True)
    return fusechat(with_settings(load_named_recipe(recipe), {"merge": given}))
