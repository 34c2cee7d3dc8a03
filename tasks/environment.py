"""Defaults for the libraries' own environment variables; must run before prefect or mlflow is imported."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from tasks.store.local_files import disk_errors

# Nothing is sent to the makers of the libraries, and nothing is looked up on their sites.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # It would print a server's address, with a password that it carries, and into the output of --json.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Prefect's server on SQLite, with many runs at once, answers for minutes that it is too busy; the pauses double.
PATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "8"}
# oneDNN compiles products for every shape of a batch and keeps half a megabyte of each, 1,024 of them unless told.
COMPILED_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}


def home_folder() -> Path:
    """Return the folder of everything that has no place of its own, as settings will find it too."""
    return Path(os.environ.get("FUSELINE_HOME") or ".fuseline").expanduser().absolute()


def configure_libraries(home: Path) -> None:
    """Point Prefect at a home of its own below ``home`` and silence telemetry; what the user has set stays.

    Without PREFECT_API_URL the flow starts Prefect's ephemeral server, whose database must not be the one of
    another project on the same machine.
    """
    # `make_prefect_home` makes it for the commands that need it; a mistake in a recipe leaves no folder behind.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    for name, value in (QUIET | PATIENT | COMPILED_PRODUCTS).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
        # Fuseline says itself what runs and what failed; a server of the user's own keeps the full log.
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


def make_prefect_home() -> None:
    """Create Prefect's home folder: its ephemeral server does not, and then never answers."""
    folder = Path(os.environ["PREFECT_HOME"])
    with disk_errors(f"Making Prefect's home folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
