"""Commands on the servers of this machine: up, down, status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tasks.environment import home_folder

PREFECT_FILE = "prefect.yaml"


def up() -> None:
    """Start S3, MLflow, Prefect, a receiver and a worker, with deployments; what runs already goes on."""
    from fusion_core.errors import FusionError
    from tasks.stack.control import start_stack

    project = Path.cwd()
    if not (project / PREFECT_FILE).is_file():
        raise FusionError(f"There is no {PREFECT_FILE} in {project}; run `fuseline up` in the clone of Fuseline.")
    stack = start_stack(home_folder(), project, print)
    print(f"Prefect:  {stack.ports.prefect_ui}")
    print(f"MLflow:   {stack.ports.mlflow_url}")
    print(f"S3:       {stack.ports.s3_url}")
    print(f"receiver: {stack.ports.receiver_url}, to which MLflow tells of registered sources")
    print(f"sign in:  user and passwords are in {stack.folder.credentials}, which only you can read")
    print(f"use it:   source {stack.folder.environment}")


def down() -> None:
    """Stop what `fuseline up` started; a run under way can be resumed, and all data stay."""
    from tasks.stack.control import stop_stack

    stopped = stop_stack(home_folder(), print)
    print(f"{stopped} stopped." if stopped else "Nothing ran.")


def status(json_output: Annotated[bool, typer.Option("--json", help="Print the states as JSON.")] = False) -> None:
    """Say what of the stack runs and where; exits 1 when something is stopped or does not answer."""
    from tasks.stack.control import stack_states

    states = stack_states(home_folder())
    if json_output:
        print(json.dumps([{**vars(state), "log": str(state.log)} for state in states], indent=1))
    elif not states:
        print("No stack was started here; `fuseline up` starts one.")
    else:
        names, words = (max(len(getattr(state, key)) for state in states) for key in ("name", "state"))
        for state in states:
            process = "" if state.pid is None else f", process {state.pid}"
            print(f"{state.name:<{names}}  {state.state:<{words}}  {state.address}{process}")
            # On a line of its own: a path is copied whole, however narrow the terminal.
            print(f"{'':<{names}}  log {state.log}")
    if not states or not all(state.healthy for state in states):
        raise typer.Exit(1)
