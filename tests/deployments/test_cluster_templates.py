"""Kubernetes and Slurm templates: valid by Kubernetes' own schemas and by the shell; no cluster is needed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.settings import PREFIX, Settings

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOYMENTS = REPOSITORY / "deployments"
KUBERNETES = DEPLOYMENTS / "kubernetes"
SLURM = sorted((DEPLOYMENTS / "slurm").glob("*.sbatch"))
VERSION = "1.30"


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def filled_in(value: Any, values: dict[str, Any]) -> Any:
    """Put values in place of ``{{ name }}``, as Prefect's worker does; a whole placeholder keeps its value's type."""
    if isinstance(value, dict):
        return {key: filled_in(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, values) for item in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\{\{ (\w+) \}\}", value)
    if whole:
        return values[whole.group(1)]
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: str(values[match.group(1)]), value)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return json.loads((KUBERNETES / "base-job-template.json").read_text(encoding="utf-8"))


def job_of(template: dict[str, Any]) -> dict[str, Any]:
    values = {name: field.get("default") for name, field in template["variables"]["properties"].items()}
    # What the worker makes of a run: arguments as a list, variables as names and values.
    values |= {"command": ["prefect", "flow-run", "execute"], "labels": {"run": "one"}}
    values["env"] = [{"name": "FUSELINE_STORE", "value": "s3://bucket"}]
    return filled_in(template["job_configuration"]["job_manifest"], values)


def test_the_job_of_a_run_is_valid_and_asks_for_a_gpu_shared_memory_and_credentials(template: dict[str, Any]) -> None:
    job = job_of(template)
    pod = job["spec"]["template"]["spec"]
    # Prefect's worker insists on these two here, where Kubernetes knows and heeds no such fields.
    assert [pod.pop("completions"), pod.pop("parallelism")] == [1, 1]
    validate(job)
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/dev/shm"}
    assert container["envFrom"] == [{"secretRef": {"name": "fuseline-credentials"}}]
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]


def test_every_variable_of_the_template_is_described_and_used(template: dict[str, Any]) -> None:
    configuration = json.dumps(template["job_configuration"])
    for name, field in template["variables"]["properties"].items():
        assert f"{{{{ {name} }}}}" in configuration, f"{name} does nothing"
        assert field["title"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", configuration))
    assert used == set(template["variables"]["properties"])


@pytest.mark.slow
def test_prefects_own_worker_takes_the_template(template: dict[str, Any]) -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="needs prefect-kubernetes")
    import asyncio

    made = asyncio.run(worker.KubernetesWorkerJobConfiguration.from_template_and_values(template, {"command": "x"}))
    assert made.job_manifest["spec"]["template"]["spec"]["containers"][0]["image"] == "fuseline-worker-cuda:local"


def test_the_job_on_several_nodes_is_valid_and_its_numbers_agree() -> None:
    service, job = YAML(typ="safe").load_all(KUBERNETES / "train-on-nodes.yaml")
    validate(service)
    validate(job)
    container = job["spec"]["template"]["spec"]["containers"][0]
    options = dict(option.split("=", 1) for option in container["args"] if option.startswith("--") and "=" in option)
    assert int(options["--nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(options["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    host, port = options["--rdzv-endpoint"].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def test_the_home_of_the_image_is_on_a_disk_that_can_be_written(template: dict[str, Any]) -> None:
    """Libraries keep what they fetch from a hub in the home, and the root is read-only."""
    dockerfile = (REPOSITORY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    home = re.search(r"\sHOME=(\S+)", dockerfile.partition("AS worker\n")[2])
    _, several = YAML(typ="safe").load_all(KUBERNETES / "train-on-nodes.yaml")
    for job in (job_of(template), several):
        mounts = job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert home and home[1] in {mount["mountPath"] for mount in mounts}


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.stem)
def test_slurm_scripts_are_shell_and_warn_before_the_end(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert "--requeue" in options
    assert any(option.startswith("--signal=") for option in options)
    # Slurm reads no options after the first command.
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:])


@pytest.mark.parametrize("page", [*SLURM, REPOSITORY / "docs" / "cluster.md"], ids=lambda path: path.stem)
def test_every_variable_with_fuselines_prefix_is_a_setting(page: Path) -> None:
    """A job inherits what was exported where it was queued, and one unknown variable ends every command."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(rf"{PREFIX}\w+", page.read_text(encoding="utf-8"))) - known == set()


def test_slurms_worker_queues_itself_again_when_its_time_is_over(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    stand_in(programs / "prefect", f"touch {tmp_path}/started; exec sleep 60")
    stand_in(programs / "scontrol", f'echo "$@" > {tmp_path}/asked')
    (tmp_path / "place").touch()
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PLACE_VARIABLES": str(tmp_path / "place"),
        "PLACE_VENV": str(tmp_path),
        "SLURM_JOB_ID": "7",
    }
    script = DEPLOYMENTS / "slurm" / "worker.sbatch"
    with subprocess.Popen(["bash", str(script)], env=environment) as job:
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


def stand_in(path: Path, commands: str) -> None:
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
