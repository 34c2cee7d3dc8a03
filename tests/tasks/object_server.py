"""A real S3 server (SeaweedFS) on loopback, on free ports, for as long as a test or a benchmark needs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from fusion_core.ports import free_ports

BUCKET = "fuseline"
POLICY = Path(__file__).resolve().parents[2] / "deployments" / "s3" / "policy.json"
WRITER = ("test-writer", "test-writer-secret")
ADMINISTRATOR = ("test-administrator", "test-administrator-secret")
READER = ("test-reader", "test-reader-secret")
# What `weed mini` listens on; it takes fixed numbers for those it is not told.
SERVICES = ("s3", "master", "filer", "volume", "admin")
PORTS = tuple(port for service in SERVICES for port in (f"{service}.port", f"{service}.port.grpc"))


@dataclass(frozen=True)
class ObjectServer:
    """A running server with one bucket, a writer with the product's own policy, a reader and an administrator."""

    endpoint_url: str

    def client(self, user: tuple[str, str] = WRITER):
        """Return a plain boto3 client."""
        config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3, "mode": "standard"})
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=user[0],
            aws_secret_access_key=user[1],
            region_name="us-east-1",
            config=config,
        )


def server_program() -> Path | None:
    """Return SeaweedFS's program beside this Python or on the path, None where it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.is_file() else shutil.which("weed")
    return Path(found) if found else None


@contextmanager
def running_server(folder: Path, program: Path) -> Iterator[ObjectServer]:
    """Start the server with its data in `folder`, yield it when it answers, and stop it."""
    folder.mkdir(parents=True, exist_ok=True)
    identities = [
        _identity("writer", WRITER) | {"policyNames": ["product"]},
        _identity("administrator", ADMINISTRATOR) | {"actions": ["Admin", "Read", "Write", "List", "Tagging"]},
        _identity("reader", READER) | {"actions": [f"Read:{BUCKET}", f"List:{BUCKET}"]},
    ]
    policy = {"name": "product", "content": POLICY.read_text(encoding="utf-8")}
    config = folder / "identities.json"
    config.write_text(json.dumps({"identities": identities, "policies": [policy]}))
    ports = free_ports(len(PORTS))
    command = [str(program), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"]
    command += [f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += ["-s3.domainName=s3.test", f"-bucket={BUCKET}", "-master.volumeSizeLimitMB=1024"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        server = ObjectServer(f"http://127.0.0.1:{ports[0]}")
        _wait_until_whole(server, process, folder / "server.log")
        yield server
    finally:
        # It keeps every acknowledged object through a kill, and a polite end takes it ten seconds.
        process.kill()
        process.wait()


def _identity(name: str, user: tuple[str, str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": user[0], "secretKey": user[1]}]}


def _wait_until_whole(server: ObjectServer, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the bucket, and for the parts that start after the gateway and take the whole server with them."""
    client = server.client()
    deadline = time.monotonic() + 60
    while True:
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            client.delete_object(Bucket=BUCKET, Key="ready")
            if "All enabled components are running" in log.read_text(errors="replace"):
                return
            reason = "not all of its parts run"
        except (BotoCoreError, ClientError) as error:
            reason = str(error)
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"SeaweedFS did not start: {reason}\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
