"""Creates what a running stack needs: the bucket, the work pool, the device limit and the deployments.

Run as ``python -m tasks.stack.provision PROJECT [--no-worker]`` with the stack's variables; doing it again changes
nothing, but that runs are closed which a killed worker left, where ``--no-worker`` says that none runs now.
"""

from __future__ import annotations

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
from tasks.stack.lost_runs import close_lost_runs
from tasks.stack.notifications import create_failure_notification
from tasks.stack.services import POOL

PREFECT_FILE = "prefect.yaml"
NO_WORKER = "--no-worker"
BUCKET_TRIES = 60


def create_bucket(settings: Settings) -> None:
    """Create the bucket of the store unless it is there."""
    bucket, _ = split_s3_address(settings.store)
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url, region_name="us-east-1")
    for _ in range(BUCKET_TRIES):
        try:
            client.create_bucket(Bucket=bucket)
            # The server answers before it has room for objects.
            client.put_object(Bucket=bucket, Key="ready", Body=b"")
            client.delete_object(Bucket=bucket, Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            taken = isinstance(error, ClientError) and error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou"
            if taken or "BucketAlreadyExists" in str(error):
                return
            problem = error
            time.sleep(0.5)
    raise FusionError(f"The bucket {bucket!r} cannot be created: {problem}.")


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
    settings = Settings()
    try:
        create_bucket(settings)
        create_pool_and_limit(settings)
        create_failure_notification()
        create_deployments(Path(sys.argv[1]))
        if NO_WORKER in sys.argv[2:]:
            close_lost_runs()
    except FusionError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
