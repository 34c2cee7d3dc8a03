"""The MLflow run that holds a whole fusion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.runtime import flow_run

from fusion_core.devices import set_imports_aside
from fusion_core.recipes import recipe_yaml
from tasks.addresses import ResolvedFusion
from tasks.registry.lineage_record import LINEAGE, LineageRecord, fusion_identity, lineage_record
from tasks.runs.ownership import owned_run
from tasks.runs.tracking import flatten
from tasks.settings import Settings
from tasks.store.interface import Store
from tasks.store.publication import find_artifact
from tasks.store.workplace import open_workplace

RECIPE = "recipe.yaml"
PLAN = "plan.md"


@contextmanager
def fusion_run(fusion: ResolvedFusion) -> Iterator[str]:
    """Open the parent run of a fusion, or go on with the one that an earlier attempt left unfinished.

    It has the recipe's parameters, the pinned inputs and the plan; it ends FAILED when the flow raises.
    """
    set_imports_aside()
    config = fusion.config
    workplace = open_workplace()
    tracking = workplace.tracking(config.registry.experiment)
    record = lineage_record(fusion)
    with owned_run(tracking, workplace.store, config.name, fusion_identity(fusion), _tags(record)) as run:
        tracking.log(run, parameters=flatten(config.model_dump(mode="json")))
        tracking.log_text(run, recipe_yaml(config), RECIPE)
        tracking.log_text(run, record.model_dump_json(indent=1), LINEAGE)
        tracking.log_text(run, _plan(record, workplace.store), PLAN)
        yield run


def _tags(record: LineageRecord) -> dict[str, str]:
    tags = {
        "fuseline.address": record.address,
        "fuseline.dataset": record.dataset_digest,
        "fuseline.code": str(record.code),
        **{f"fuseline.{model.role}.{model.name}": model.digest for model in record.models},
        **{f"fuseline.revision.{model.name}": model.revision for model in record.models if model.revision},
    }
    if record.code.commit is not None:
        # The name under which MLflow shows a run's version.
        tags["mlflow.source.git.commit"] = record.code.commit
    if flow_run.id:
        # Prefect's ephemeral server has no pages.
        tags["prefect.flow_run"] = str(flow_run.ui_url if Settings().prefect_api_url else flow_run.id)
    return tags


def _plan(record: LineageRecord, store: Store) -> str:
    """Say what is found and what is to be computed, stage by stage."""
    lines = ["| stage | for | at the start | address |", "|---|---|---|---|"]
    for one in record.stages:
        state = "to compute" if find_artifact(store, one.address) is None else "found"
        lines.append(f"| {one.stage} | {one.subject} | {state} | `{one.address}` |")
    return "\n".join(lines) + "\n"
