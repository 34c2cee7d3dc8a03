"""The report of a run that MLflow remembers, written anew from what the run kept."""

from __future__ import annotations

from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from fusion_core.config import NAME_PATTERN
from fusion_core.errors import TrackingError, first_line
from fusion_core.report.html import render_report
from fusion_core.report.run_summary import RunSummary
from tasks.registry.versions import run_artifact
from tasks.runs.tracking import Tracking, plain_errors
from tasks.settings import Settings
from tasks.stages.summarize import REPORT, SUMMARY


def report_of_run(run: str) -> Path:
    """Write the report of a run of a fusion, keep it with the run, and return the file.

    Parameters
    ----------
    run : str
        The run's id in MLflow, or the recipe's name: then its newest run that has a report.

    Raises
    ------
    TrackingError
        If there is no such run, or it has kept no summary that this version reads.
    """
    settings = Settings()
    tracking = Tracking(settings, "fuseline")
    with plain_errors(settings):
        candidates = _by_id(tracking, run) or _by_name(tracking, run)
    if not candidates:
        raise TrackingError(
            f"There is no recipe file and no run {run!r} in MLflow; give a recipe, a run's id, or the name of a recipe "
            "that has been run."
        )
    for found in candidates:
        text = run_artifact(tracking, found.info.run_id, SUMMARY)
        if text is not None:
            return _write(tracking, found, text)
    raise TrackingError(f"The run {run!r} has kept no {SUMMARY}, so it has not ended well; run its recipe again.")


def _write(tracking: Tracking, run: Run, text: str) -> Path:
    try:
        summary = RunSummary.model_validate_json(text)
    except ValidationError as error:
        raise TrackingError(
            f"The {SUMMARY} of the run {run.info.run_id} was written by another version of Fuseline; write the report "
            "anew from its recipe: `fuseline report recipe.yaml`."
        ) from error
    if not NAME_PATTERN.match(summary.name):
        raise TrackingError(
            f"The {SUMMARY} of the run {run.info.run_id} calls its recipe {summary.name[:80]!r}, which is no "
            "recipe's name; run it again."
        )
    folder = tracking.settings.home / "runs" / f"{summary.name}-{run.info.run_id}"
    try:
        page = render_report(summary)
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        # Of the right types, and yet no run of ours: a date that is none, a figure that is no number.
        raise TrackingError(
            f"The {SUMMARY} of the run {run.info.run_id} cannot be shown ({first_line(error)}); write the report anew "
            "from its recipe: `fuseline report recipe.yaml`."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(page, encoding="utf-8")
    tracking.log_file(run.info.run_id, folder / REPORT)
    return folder / REPORT


def _by_id(tracking: Tracking, run: str) -> list[Run]:
    try:
        return [tracking.client.get_run(run)]
    except MlflowException:
        return []


def _by_name(tracking: Tracking, name: str) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in tracking.client.search_experiments()]
    # A quote would end the filter's string; no recipe's name has one.
    if "'" in name or not experiments:
        return []
    wanted = f"attributes.run_name = '{name}' and tags.`fuseline.stage` = 'fusion'"
    found = tracking.client.search_runs(experiments, wanted, order_by=["attributes.start_time DESC"], max_results=20)
    return list(found)
