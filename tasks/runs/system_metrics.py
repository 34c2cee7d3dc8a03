"""Processor, memory, disk, network and GPU figures of a stage, in its MLflow run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


@contextmanager
def system_metrics(tracking_uri: str, run_id: str) -> Iterator[None]:
    """Sample the machine while a stage works; the sampling thread ends with the block.

    MLflow's own variables set how often, and MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false turns it off. Figures are an
    extra: what goes wrong with them stops nothing.
    """
    if os.environ.get(SWITCH, "true").lower() in ("false", "0"):
        yield
        return
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri)
    first_step = monitor._logging_step
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        # A stage shorter than one interval has been sampled, and MLflow would drop the sample.
        if monitor._logging_step == first_step:
            with suppress(Exception):
                monitor.publish_metrics(monitor.aggregate_metrics())
                monitor.mlflow_logger.flush()
