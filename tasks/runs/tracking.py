"""MLflow: one parent run per fusion, one child run per computed stage, and the registry."""

from __future__ import annotations

import getpass
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fusion_core.errors import FusionError, TrackingError, TrainingInterruptedError, first_line
from tasks.runs.embedded_database import make_embedded_database
from tasks.runs.system_metrics import system_metrics
from tasks.settings import Settings, without_credentials
from tasks.store.local_files import is_full_disk

METRICS_IN_ONE_CALL = 900
PARAMETERS_IN_ONE_CALL = 90
LONGEST_VALUE = 6000
LONGEST_NAME = 250

# How often a run was begun, when last (seconds since the epoch), and what stopped it.
ATTEMPT = "fuseline.attempt"
BEGUN = "fuseline.attempt_begun"
ERROR = "fuseline.error"


@dataclass(frozen=True)
class Tracking:
    """A connection to one MLflow experiment."""

    settings: Settings
    experiment: str

    @cached_property
    def client(self) -> MlflowClient:
        """The client; with an embedded SQLite database its first use creates the tables."""
        # It writes the traceback of what it raises besides, and `plain_errors` makes one sentence of that.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        with plain_errors(self.settings):
            make_embedded_database(self.settings)
        return MlflowClient(tracking_uri=self.settings.tracking_uri)

    @cached_property
    def experiment_id(self) -> str:
        """Id of the experiment, made on first use with artifacts beside the embedded database."""
        with plain_errors(self.settings):
            found = self.client.get_experiment_by_name(self.experiment)
            if found is not None:
                return str(found.experiment_id)
            # A server decides for itself where artifacts lie; the embedded database would take the working directory.
            embedded = not self.settings.mlflow_tracking_uri
            location = self.settings.tracking_artifacts.as_uri() if embedded else None
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=location))
            except MlflowException:
                # Another process made it between the look and the making.
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
                return str(found.experiment_id)

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Open a run and return its id."""
        all_tags = {
            **tags,
            BEGUN: str(time.time()),
            **({"mlflow.parentRunId": parent} if parent else {}),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "fuseline",
            "mlflow.user": _user(),
        }
        with plain_errors(self.settings):
            return str(self.client.create_run(self.experiment_id, run_name=name, tags=all_tags).info.run_id)

    def continue_run(self, run_id: str) -> None:
        """Open a run again that ended early, or that a killed process left open, and count the attempt."""
        with plain_errors(self.settings):
            tags = self.client.get_run(run_id).data.tags
            self.client.update_run(run_id, status="RUNNING")
            self.client.set_tag(run_id, ATTEMPT, str(int(tags.get(ATTEMPT, "1")) + 1))
            self.client.set_tag(run_id, BEGUN, str(time.time()))
            if ERROR in tags:
                self.client.delete_tag(run_id, ERROR)

    def begun(self, run_id: str) -> float:
        """Return when the last attempt of a run began, in seconds since the epoch."""
        with plain_errors(self.settings):
            return float(self.client.get_run(run_id).data.tags[BEGUN])

    def end_run(self, run_id: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        with plain_errors(self.settings):
            self.client.set_terminated(run_id, status=status)

    def fail_run(self, run_id: str, error: BaseException) -> None:
        """Close a run that an error stopped: KILLED where somebody asked for it, else FAILED, with the reason."""
        asked = not isinstance(error, Exception) or isinstance(error, TrainingInterruptedError)
        self.log(run_id, tags={ERROR: first_line(error)})
        self.end_run(run_id, "KILLED" if asked else "FAILED")

    @contextmanager
    def stage_run(self, fusion_run: str | None, name: str, stage: str, address: str) -> Iterator[str | None]:
        """Open a child run around a stage; it ends FAILED when the stage raises. Without a parent nothing is logged.

        A stage that an earlier attempt of the same fusion left unfinished goes on in the run it had.
        """
        if fusion_run is None:
            yield None
            return
        with plain_errors(self.settings):
            begun = self.client.search_runs(
                [self.experiment_id],
                f"tags.`mlflow.parentRunId` = '{fusion_run}' and tags.`fuseline.address` = '{address}' "
                "and attributes.status != 'FINISHED'",
                max_results=1,
            )
        if begun:
            run_id = str(begun[0].info.run_id)
            self.continue_run(run_id)
        else:
            run_id = self.start_run(name, {"fuseline.stage": stage, "fuseline.address": address}, fusion_run)
        with self.ending(run_id), system_metrics(self.settings.tracking_uri, run_id):
            yield run_id

    @contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """End a run with the block: FINISHED, or FAILED with what the block raised."""
        try:
            yield
        except BaseException as error:
            # The block's own error is the one to show, whatever MLflow says to this.
            with suppress(TrackingError):
                self.fail_run(run_id, error)
            raise
        self.end_run(run_id, "FINISHED")

    def log(
        self,
        run_id: str | None,
        *,
        parameters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log parameters, metrics and tags of a run in few calls."""
        if run_id is None:
            return
        now = int(time.time() * 1000)
        points = [(key, value, now, 0) for key, value in (metrics or {}).items()]
        self.log_points(run_id, points)
        entries = [Param(clean(key), str(value)[:LONGEST_VALUE]) for key, value in (parameters or {}).items()]
        with plain_errors(self.settings):
            for start in range(0, len(entries), PARAMETERS_IN_ONE_CALL):
                self.client.log_batch(run_id, params=entries[start : start + PARAMETERS_IN_ONE_CALL])
            if tags:
                named = [RunTag(clean(key), value[:LONGEST_VALUE]) for key, value in tags.items()]
                self.client.log_batch(run_id, tags=named)

    def log_points(self, run_id: str | None, points: list[tuple[str, float, int, int]]) -> None:
        """Log (key, value, unix milliseconds, step) points; what is not finite is left out."""
        if run_id is None:
            return
        metrics = [Metric(clean(key), value, at, step) for key, value, at, step in points if math.isfinite(value)]
        with plain_errors(self.settings):
            for start in range(0, len(metrics), METRICS_IN_ONE_CALL):
                self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_IN_ONE_CALL])

    def log_text(self, run_id: str | None, text: str, name: str) -> None:
        """Store a text as an artifact of a run."""
        if run_id is not None:
            with plain_errors(self.settings):
                self.client.log_text(run_id, text, name)

    def log_file(self, run_id: str | None, path: Path) -> None:
        """Store a file as an artifact of a run."""
        if run_id is not None:
            with plain_errors(self.settings):
                self.client.log_artifact(run_id, str(path))


@contextmanager
def plain_errors(settings: Settings) -> Iterator[None]:
    """Turn MLflow's errors into one sentence with the address that was tried."""
    try:
        yield
    except FusionError:
        raise
    except Exception as error:  # MLflow's own, its server's, and those of the database under an embedded one
        remedy = (
            "free some space there" if is_full_disk(error) else "check MLFLOW_TRACKING_URI and that the server runs"
        )
        # MLflow's own message quotes the address that it asked.
        said = without_credentials(first_line(error), settings.tracking_uri)
        raise TrackingError(
            f"MLflow at {settings.shown_tracking_uri} refused or did not answer ({said}); {remedy}."
        ) from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def clean(key: str) -> str:
    """Replace what MLflow does not allow in the name of a metric, parameter or tag: other letters, and odd paths."""
    allowed = "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in key[:LONGEST_NAME])
    return "/".join(part for part in allowed.split("/") if part not in ("", ".", "..")) or "_"


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to dotted keys, as MLflow's parameters want it."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                flat |= flatten(item, f"{prefix}{key}.{index}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
