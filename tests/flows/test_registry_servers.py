"""The registry on a real MLflow server with the store on S3: promoted, traced, loaded; no weights pass the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fusion_core.ports import free_ports
from tests.flows.test_servers import RUN_SECONDS, server

pytestmark = pytest.mark.slow

LOAD = """
import mlflow
pipeline = mlflow.transformers.load_model("models:/small@champion")
print(pipeline("Once upon a time", max_new_tokens=8, do_sample=False)[0]["generated_text"])
from transformers import AutoModelForCausalLM
folder = mlflow.artifacts.download_artifacts("models:/small@champion")
print(AutoModelForCausalLM.from_pretrained(folder).config.model_type)
"""


def test_the_registry_points_at_the_store(recipe_file: Path, tmp_path: Path, s3_bucket: dict[str, str]) -> None:
    environment = {**os.environ, "FUSELINE_HOME": str(tmp_path / "home"), **s3_bucket}
    environment.pop("PREFECT_API_URL", None)
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    artifacts = tmp_path / "artifacts"
    mlflow_server = [
        *(str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--workers", "1"),
        *("--port", url.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
        *("--artifacts-destination", str(artifacts)),
    ]
    with server(
        mlflow_server,
        f"{url}/health",
        {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        tmp_path / "mlflow.log",
    ):
        environment["MLFLOW_TRACKING_URI"] = url

        def call(*command: str) -> str:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        def fuseline(*arguments: str) -> str:
            return call(sys.executable, "-c", "from flows.command_line import main; main()", *arguments)

        fuseline("run", str(recipe_file))
        assert "small version 1 is champion" in fuseline("promote", "small")
        text = fuseline("lineage", "small", "1")
        assert "no longer in the store" not in text and "merge fused" in text
        again = fuseline("reproduce", "small", "1", "--out", str(tmp_path / "again"), "--check")
        assert "it gives the same address" in again
        version = httpx.get(
            f"{url}/api/2.0/mlflow/model-versions/get", params={"name": "small", "version": "1"}
        ).json()["model_version"]
        assert version["source"].startswith("s3://") and version["source"].endswith(text_address(version))
        environment["MLFLOW_S3_ENDPOINT_URL"] = environment["FUSELINE_S3_ENDPOINT_URL"]
        generated, kind = call(sys.executable, "-c", LOAD).strip().splitlines()[-2:]
        assert generated.startswith("Once upon a time") and kind == "llama"
        passed = [path.name for path in artifacts.rglob("*") if path.is_file()]
        assert {"report.html", "lineage.json", "recipe.yaml"} <= set(passed)
        assert not [name for name in passed if name.endswith((".safetensors", "tokenizer.json"))]


def text_address(version: dict[str, list[dict[str, str]]]) -> str:
    """Return the address in a version's tags."""
    return next(tag["value"] for tag in version["tags"] if tag["key"] == "fuseline.address")
