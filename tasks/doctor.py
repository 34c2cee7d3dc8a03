"""Checks of the machine and of the servers, each with one line on what was found and what to do."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from fusion_core.devices import default_device, has_fast_bfloat16
from fusion_core.errors import FusionError
from tasks.runs.tracking import Tracking, plain_errors
from tasks.servers import check_mlflow, check_prefect
from tasks.settings import Settings, without_credentials
from tasks.store.open_store import open_store

LOW_DISK_BYTES = 5 * 2**30
PACKAGES = ("torch", "transformers", "prefect", "mlflow", "accelerate", "boto3", "pyarrow")


@dataclass(frozen=True)
class Check:
    """One checked thing."""

    subject: str
    healthy: bool
    found: str


def examine() -> list[Check]:
    """Check versions, devices, memory, disk, store, MLflow and Prefect; a failing check never stops the others."""
    settings = Settings()
    checks: list[tuple[str, Callable[[Settings], str]]] = [
        ("versions", _versions),
        ("device", _device),
        ("memory", _memory),
        ("disk", _disk),
        ("store", _store),
        ("MLflow", _mlflow),
        ("Prefect", _prefect),
    ]
    results = []
    for subject, check in checks:
        try:
            results.append(Check(subject, True, check(settings)))
        except FusionError as error:
            results.append(Check(subject, False, str(error)))
    return results


def _versions(settings: Settings) -> str:
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found])


def _device(settings: Settings) -> str:
    device = default_device()
    precision = "bf16" if has_fast_bfloat16(device) else "float32"
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{len(names)} CUDA device(s): {', '.join(names)}; precision {precision}"
    return f"processor with {torch.get_num_threads()} threads, no CUDA device; precision {precision}"


def _memory(settings: Settings) -> str:
    memory = psutil.virtual_memory()
    return f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f} GiB"


def _disk(settings: Settings) -> str:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK_BYTES:
        raise FusionError(
            f"{free / 2**30:.1f} GiB free at {folder}; a fusion of 7B models needs hundreds, a small one at least 5: "
            "free some, or set FUSELINE_HOME to another disk."
        )
    return f"{free / 2**30:.0f} GiB free at {folder}"


def _store(settings: Settings) -> str:
    store = open_store(settings)
    key = f"doctor/{uuid.uuid4().hex}"
    store.write(key, b"fuseline")
    try:
        if store.read(key) != b"fuseline":
            raise FusionError(f"{store.url(key)} gave back other bytes than were written; do not use this store.")
    finally:
        store.delete([key])
    return f"{settings.store} is readable and writable"


def _mlflow(settings: Settings) -> str:
    check_mlflow(settings)
    with plain_errors(settings):
        Tracking(settings, "fuseline").client.search_experiments(max_results=1)
    return settings.shown_tracking_uri if settings.mlflow_tracking_uri else f"embedded at {settings.home / 'mlflow.db'}"


def _prefect(settings: Settings) -> str:
    check_prefect(settings)
    if not settings.prefect_api_url:
        return "ephemeral server, started with each run (PREFECT_API_URL is not set)"
    return without_credentials(settings.prefect_api_url, settings.prefect_api_url)
