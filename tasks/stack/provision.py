"""Creates what running servers need: work pool, device limit, deployments, and MLflow's webhook.

Run as ``python -m tasks.stack.provision PROJECT --receiver URL [--no-worker]`` with the stack's variables; doing it
again changes nothing, but that runs are closed which a killed worker left, where ``--no-worker`` says that none runs
now.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from fusion_core.devices import default_device
from fusion_core.errors import FusionError
from tasks.settings import Settings, split_s3_address
from tasks.stack.landing_webhook import create_landing_webhook
from tasks.stack.lost_runs import close_lost_runs
from tasks.stack.notifications import create_failure_notification
from tasks.stack.services import POOL

PREFECT_FILE = "prefect.yaml"
BUCKET_TRIES = 60


def wait_for_bucket(settings: Settings) -> None:
    """Wait until the bucket takes objects: the server makes it, and answers before it has room for any.

    Raises
    ------
    FusionError
        If it does not within half a minute.
    """
    bucket, _ = split_s3_address(settings.store)
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url, region_name="us-east-1")
    for _ in range(BUCKET_TRIES):
        try:
            client.put_object(Bucket=bucket, Key="ready", Body=b"")
            client.delete_object(Bucket=bucket, Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            problem = error
            time.sleep(0.5)
    raise FusionError(f"The bucket {bucket!r} takes no objects: {problem}.")


def create_pool_and_limit(settings: Settings) -> None:
    """Create the process work pool, and a global limit with a slot for each device of this machine."""
    devices = device_count()
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", description="Runs on this machine."))
        try:
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=settings.device_limit, limit=devices, active=True)
            )
        except ObjectAlreadyExists:
            return


def device_count() -> int:
    """Return how many stages may use a device at once: one a GPU, and one where there is none."""
    import torch

    return max(torch.cuda.device_count(), 1) if default_device().type == "cuda" else 1


def create_deployments(project: Path) -> None:
    """Create or update every deployment of ``prefect.yaml``.

    Raises
    ------
    FusionError
        If Prefect refuses one.
    """
    program = Path(sys.executable).with_name("prefect")
    done = subprocess.run(
        [str(program), "--no-prompt", "deploy", "--all", "--prefect-file", PREFECT_FILE],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    if done.returncode != 0:
        raise FusionError(f"Prefect refused the deployments of {project / PREFECT_FILE}: {done.stderr.strip()[-500:]}")


def main() -> None:
    """Create everything in the order in which it is needed; a failure is one sentence on standard error."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("project", type=Path)
    arguments.add_argument("--receiver", required=True, help="Address at which MLflow reaches the receiver.")
    arguments.add_argument("--no-worker", action="store_true", help="No worker runs now.")
    given = arguments.parse_args()
    settings = Settings()
    try:
        wait_for_bucket(settings)
        create_pool_and_limit(settings)
        create_failure_notification()
        create_deployments(given.project)
        create_landing_webhook(settings, given.receiver)
        if given.no_worker:
            close_lost_runs()
    except FusionError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
