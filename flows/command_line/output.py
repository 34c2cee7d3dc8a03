"""What a finished run prints."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from fusion_core.report.terminal import run_result
from tasks.registry.register import FusionResult
from tasks.settings import Settings


def print_result(result: FusionResult) -> None:
    """Print the models, the score table, what was computed, and where everything is."""
    console = Console(markup=False)
    summary = result.files.summary
    console.print(run_result(summary))
    if result.files.computed:
        did = f"{result.files.computed} stages computed, {result.files.cached} found in the store"
    else:
        did = f"nothing to compute: all {result.files.cached} stages were found in the store"
    settings = Settings()
    lines = {
        "done": f"{did}, {summary.seconds:,.0f} s",
        "model": str(result.model_folder),
        "registered": f"{result.model_name} version {result.model_version}",
        "report": str(result.files.folder / "report.html"),
        "MLflow": _mlflow_hint(settings),
    }
    for name, text in lines.items():
        console.print(f"{name + ':':<12}{text}", highlight=False, soft_wrap=True)


def _mlflow_hint(settings: Settings) -> str:
    if settings.tracking_uri.startswith("http"):
        return settings.shown_tracking_uri
    # The program of this environment, which need not be on the user's path.
    program = Path(sys.executable).with_name("mlflow")
    return f"{program} ui --backend-store-uri {settings.shown_tracking_uri} (then open http://127.0.0.1:5000)"
