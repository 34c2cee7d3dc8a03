"""Starting, looking at and stopping the stack of one machine."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from fusion_core.errors import FusionError
from fusion_core.ports import is_free
from tasks.stack.credentials import load_or_make_credentials
from tasks.stack.folder import StackFolder, only_command, write_private
from tasks.stack.ports import USUAL, Ports, load_or_choose_ports
from tasks.stack.processes import find_process, last_lines, start_process, stop_process
from tasks.stack.services import (
    SERVICES,
    Service,
    base_environment,
    client_environment,
    landing_secret,
    receiver,
    servers,
    worker,
)

START_SECONDS = 180.0
PROVISION_SECONDS = 300.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stack:
    """The services of one home folder in the order in which they start, and the variables that lead to them.

    Parameters
    ----------
    folder : StackFolder
    ports : Ports
    servers : list of Service
        Need nothing but their own data.
    workers : list of Service
        Run Fuseline's code and use the servers.
    environment : dict
        For commands.
    landing : dict
        For who makes or checks MLflow's webhook.
    """

    folder: StackFolder
    ports: Ports
    servers: list[Service]
    workers: list[Service]
    environment: dict[str, str]
    landing: dict[str, str]


@dataclass(frozen=True)
class ServiceState:
    """What one service of a stack does now."""

    name: str
    address: str
    state: str
    healthy: bool
    pid: int | None
    log: Path


def describe_stack(home: Path) -> Stack:
    """Return the stack of a home folder; its credentials and ports are made at the first call."""
    folder = StackFolder(home / "stack")
    folder.make()
    credentials = load_or_make_credentials(folder)
    ports = load_or_choose_ports(folder)
    environment = client_environment(ports, credentials, home)
    workers = [receiver(ports, credentials, environment), worker(environment)]
    return Stack(folder, ports, servers(folder, ports, credentials), workers, environment, landing_secret(credentials))


def start_stack(home: Path, project: Path, say: Say) -> Stack:
    """Start what does not run, wait until each answers, and create work pool, limits, deployments and webhook.

    Parameters
    ----------
    home : Path
        Fuseline's home folder; the stack lives in ``stack/`` below it.
    project : Path
        Folder with ``prefect.yaml``, from which the worker runs the flows.
    say : callable
        Told about each step.

    Raises
    ------
    FusionError
        If a port is taken, a server does not answer in time, a deployment is refused, or another command is at work.
    """
    folder = StackFolder(home / "stack")
    folder.make()
    with only_command(folder):
        return _start_all(home, project, say)


def _start_all(home: Path, project: Path, say: Say) -> Stack:
    stack = describe_stack(home)
    write_private(stack.folder.environment, _exports(stack.environment))
    for service in stack.servers:
        _start(stack, service, say)
    for service in stack.servers:
        _wait_for(stack, service, say)
    say("creating work pool, limits, deployments and MLflow's webhook")
    _provision(stack, project)
    for service in stack.workers:
        _start(stack, service, say, project)
    for service in stack.workers:
        _wait_for(stack, service, say)
    return stack


def stop_stack(home: Path, say: Say) -> int:
    """Stop what `start_stack` started, the worker first; returns how many processes ran."""
    folder = StackFolder(home / "stack")
    if not folder.root.is_dir():
        return 0
    stopped = 0
    # By their records alone: what runs can be stopped even where credentials or a program are gone.
    with only_command(folder):
        for name, (title, patience_seconds) in reversed(SERVICES.items()):
            if find_process(folder.record(name)) is None:
                folder.record(name).unlink(missing_ok=True)
                continue
            say(f"stopping {title}")
            stopped += stop_process(folder.record(name), patience_seconds)
    return stopped


def stack_states(home: Path) -> list[ServiceState]:
    """Return what each service does; an empty list where no stack was ever started."""
    folder = StackFolder(home / "stack")
    if not folder.credentials.exists():
        return []
    stack = describe_stack(home)
    return [_state(folder, service) for service in (*stack.servers, *stack.workers)]


def _state(folder: StackFolder, service: Service) -> ServiceState:
    process = find_process(folder.record(service.name))
    healthy = process is not None and (service.health_url is None or _answers(service.health_url))
    if healthy:
        folder.answered(service.name)
    state = "stopped" if process is None else "runs" if healthy else "does not answer"
    pid = None if process is None else process.pid
    return ServiceState(service.title, service.address, state, healthy, pid, folder.log(service.name))


def _start(stack: Stack, service: Service, say: Say, project: Path | None = None) -> None:
    record = stack.folder.record(service.name)
    if find_process(record) is not None:
        say(f"{service.title} runs already")
        return
    port = {name: getattr(stack.ports, name) for name in USUAL}.get(service.name)
    if port is not None and not is_free(port):
        raise FusionError(
            f"{service.title} needs port {port}, on which another program listens; stop that program, or run "
            f"`fuseline down` and remove {stack.folder.ports} to let `fuseline up` choose other ports."
        )
    say(f"starting {service.title}")
    if project is None:
        aside = stack.folder.make_data(service.name)
        if aside is not None:
            say(f"what {service.title} began to make and never answered with is set aside in {aside}")
    start_process(
        service.command,
        base_environment() | service.environment,
        project or stack.folder.data(service.name),
        stack.folder.log(service.name),
        record,
    )


def _wait_for(stack: Stack, service: Service, say: Say) -> None:
    if service.health_url is None:
        return
    began = time.monotonic()
    while not _answers(service.health_url):
        log = stack.folder.log(service.name)
        if find_process(stack.folder.record(service.name)) is None:
            raise FusionError(f"{service.title} ended at once; the end of {log} says: {last_lines(log)}")
        if time.monotonic() - began > START_SECONDS:
            raise FusionError(
                f"{service.title} did not answer at {service.health_url} within {START_SECONDS:.0f} s; see {log}, then "
                "`fuseline down` and `fuseline up`."
            )
        time.sleep(0.2)
    stack.folder.answered(service.name)
    say(f"{service.title} answers at {service.address}")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _provision(stack: Stack, project: Path) -> None:
    # In a process of its own: Prefect reads its settings once, when it is imported.
    worker_runs = find_process(stack.folder.record("worker")) is not None
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tasks.stack.provision", str(project), "--receiver", stack.ports.receiver_url),
            *([] if worker_runs else ["--no-worker"]),
        ],
        env=base_environment() | stack.environment | stack.landing,
        cwd=project,
        capture_output=True,
        text=True,
        timeout=PROVISION_SECONDS,
        check=False,
    )
    log = stack.folder.log("provision")
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        raise FusionError(f"Creating the deployments failed; the end of {log} says: {last_lines(log)}")


def _exports(environment: dict[str, str]) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join(["# Lets commands of this shell use the stack.", *lines, ""])
