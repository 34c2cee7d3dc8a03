"""The servers of a stack: what each is started with, and how it shows that it is ready."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fusion_core.errors import FusionError
from fusion_core.ports import LOOPBACK
from tasks.environment import PATIENT
from tasks.stack.credentials import USER, Credentials
from tasks.stack.folder import StackFolder, write_private
from tasks.stack.ports import Ports

BUCKET = "fuseline"
S3_POLICY = Path(__file__).resolve().parents[2] / "deployments" / "s3" / "policy.json"
RECIPES = "FUSELINE_RECIPES"
POOL = "fuseline"
DEVICE_LIMIT = "fuseline-device"
# It keeps every acknowledged object through a kill, and its own polite end takes ten seconds.
AT_ONCE = 0.0
POLITE_SECONDS = 20.0
# A worker first lets its flow runs write their checkpoints.
WORKER_SECONDS = 60.0
# What people call each service, and how long it is given to end by itself; in the order in which they start.
SERVICES = {
    "s3": ("S3 server", AT_ONCE),
    "mlflow": ("MLflow", POLITE_SECONDS),
    "prefect": ("Prefect", POLITE_SECONDS),
    "receiver": ("receiver", POLITE_SECONDS),
    "worker": ("worker", WORKER_SECONDS),
}


@dataclass(frozen=True)
class Service:
    """One process of a stack."""

    name: str
    command: tuple[str, ...]
    address: str
    health_url: str | None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What people call it."""
        return SERVICES[self.name][0]


def client_environment(ports: Ports, credentials: Credentials, home: Path) -> dict[str, str]:
    """Return the variables with which commands and workers use the stack."""
    # The one setting of the user's own that decides which recipes forms and landed sources find.
    chosen = os.environ.get(RECIPES)
    recipes = {RECIPES: str(Path(chosen).expanduser().absolute())} if chosen else {}
    return recipes | {
        "FUSELINE_HOME": str(home),
        "FUSELINE_STORE": f"s3://{BUCKET}/fuseline",
        "FUSELINE_S3_ENDPOINT_URL": ports.s3_url,
        "FUSELINE_DEVICE_LIMIT": DEVICE_LIMIT,
        "AWS_ACCESS_KEY_ID": credentials.s3_access_key.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_key.get_secret_value(),
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": ports.mlflow_url,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": credentials.mlflow_password.get_secret_value(),
        "MLFLOW_S3_ENDPOINT_URL": ports.s3_url,
        "PREFECT_API_URL": ports.prefect_api,
        "PREFECT_API_AUTH_STRING": f"{USER}:{credentials.prefect_password.get_secret_value()}",
    }


def servers(folder: StackFolder, ports: Ports, credentials: Credentials) -> list[Service]:
    """Return the three servers, and write the configuration files they read.

    Raises
    ------
    FusionError
        If a program is not installed.
    """
    return [_s3(folder, ports, credentials), _mlflow(folder, ports, credentials), _prefect(folder, ports, credentials)]


def worker(environment: dict[str, str]) -> Service:
    """Return the worker that runs what the deployments start, with the stack's variables."""
    return Service(
        name="worker",
        command=(_program("prefect"), "worker", "start", "--pool", POOL, "--type", "process", "--name", "this-machine"),
        address=f"work pool {POOL!r}",
        health_url=None,
        environment=PATIENT | environment,
    )


def receiver(ports: Ports, credentials: Credentials, environment: dict[str, str]) -> Service:
    """Return the receiver, to which MLflow tells of registered sources, and which tells Prefect."""
    return Service(
        name="receiver",
        command=(sys.executable, "-m", "tasks.landing.serve_receiver", LOOPBACK, str(ports.receiver)),
        address=ports.receiver_url,
        health_url=f"{ports.receiver_url}/health",
        environment=environment | landing_secret(credentials),
    )


def landing_secret(credentials: Credentials) -> dict[str, str]:
    """Return the variable with what MLflow's webhook signs; only the receiver and who makes the webhook get it."""
    return {"FUSELINE_WEBHOOK_SECRET": credentials.landing_secret.get_secret_value()}


def _s3(folder: StackFolder, ports: Ports, credentials: Credentials) -> Service:
    data = folder.data("s3")
    identity = {
        "name": USER,
        "credentials": [
            {
                "accessKey": credentials.s3_access_key.get_secret_value(),
                "secretKey": credentials.s3_secret_key.get_secret_value(),
            }
        ],
        "policyNames": [USER],
    }
    # The one identity may do what Fuseline and MLflow do, in their bucket: nobody administers the server.
    policy = {"name": USER, "content": S3_POLICY.read_text(encoding="utf-8")}
    identities = folder.root / "s3-identities.json"
    write_private(identities, json.dumps({"identities": [identity], "policies": [policy]}))
    # SeaweedFS binds everywhere unless told; the gateways for WebDAV, Iceberg and Lance are not wanted.
    command = [_program("weed"), "mini", f"-dir={data}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
    command += [f"-s3.config={identities}", f"-s3.port={ports.s3}", f"-bucket={BUCKET}"]
    command += [f"-{name}={port}" for name, port in ports.s3_inner.items()]
    command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    return Service("s3", tuple(command), ports.s3_url, f"{ports.s3_url}/healthz")


def _mlflow(folder: StackFolder, ports: Ports, credentials: Credentials) -> Service:
    data = folder.data("mlflow")
    settings = folder.root / "mlflow-auth.ini"
    write_private(
        settings,
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{data / 'users.db'}\n"
        f"admin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Hashing the password for each request would triple the time of logging.
        "auth_cache_ttl_seconds = 60\n",
    )
    command = (
        *(_program("mlflow"), "server", "--app-name", "basic-auth", "--workers", "1"),
        *("--host", LOOPBACK, "--port", str(ports.mlflow)),
        *("--backend-store-uri", f"sqlite:///{data / 'mlflow.db'}"),
        *("--artifacts-destination", f"s3://{BUCKET}/mlflow"),
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": credentials.mlflow_password.get_secret_value(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.mlflow_session_key.get_secret_value(),
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": credentials.mlflow_webhook_key.get_secret_value(),
        # The receiver of landed sources is on this machine.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_S3_ENDPOINT_URL": ports.s3_url,
        "AWS_ACCESS_KEY_ID": credentials.s3_access_key.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_key.get_secret_value(),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return Service("mlflow", command, ports.mlflow_url, f"{ports.mlflow_url}/health", environment)


def _prefect(folder: StackFolder, ports: Ports, credentials: Credentials) -> Service:
    data = folder.data("prefect")
    command = (_program("prefect"), "server", "start", "--host", LOOPBACK, "--port", str(ports.prefect))
    environment = {
        "PREFECT_HOME": str(data),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{data / 'prefect.db'}",
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{credentials.prefect_password.get_secret_value()}",
        "PREFECT_UI_API_URL": ports.prefect_api,
        "PREFECT_LOGGING_LEVEL": "WARNING",
    }
    return Service("prefect", command, ports.prefect_ui, f"{ports.prefect_api}/health", environment)


def base_environment() -> dict[str, str]:
    """Return this process's variables without those that would point a server of the stack somewhere else."""
    foreign = ("PREFECT_", "MLFLOW_", "FUSELINE_", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _program(name: str) -> str:
    """Return a program of this Python's environment, else one on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise FusionError(
            f"The program {name!r} is not installed in this environment; install the stack's extra: "
            "pip install -c constraints.txt -e '.[stack]'."
        )
    return found
