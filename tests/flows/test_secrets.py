"""No secret leaves the environment: a mark in every credential variable is looked for in all that a run leaves."""

from __future__ import annotations

import ast
import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.command_line import main
from fusion_core.config.judging import JudgeConfig
from fusion_core.ports import free_ports
from tasks.settings import PREFIX, Settings
from tests.canaries import CREDENTIALS, SERVERS_OWN, found_in, found_in_files, make_canaries, watched_command_lines
from tests.fusion_core.evaluation.chat_server import ChatServer, chat_server
from tests.fusion_core.evaluation.mt_bench.conftest import SAMPLE

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from flows.command_line import main; main()"]
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_(KEY|KEY_ID|SECRET|TOKEN|PASSWORD|PASSWORD_FILE|AUTH_STRING|CREDENTIALS?)")
# An address of a database or a server may hold a password.
ADDRESS = re.compile(r"[A-Z][A-Z0-9_]*_(STORE_URI|CONNECTION_URL)")
CHAT = """
evaluation:
  plain_sft_control: false
  judge: {{model: judge, base_url: "{url}", key_variable: RECIPES_OWN_KEY}}
  mt_bench: {{path: {data}, max_new_tokens: 4, questions: 2}}
  judged_models: [fused]
"""


def judged_recipe(recipe_file: Path, folder: Path, url: str) -> Path:
    """Write the small recipe with one source and a judge."""
    text = recipe_file.read_text(encoding="utf-8").replace("  - {name: bytes-700, path: bytes-700}\n", "")
    for name in ("bytes-400", "template.jinja", "mathematics.jsonl", "code.jsonl", "dialogue.jsonl"):
        text = text.replace(f"path: {name}", f"path: {recipe_file.parent / name}")
        text = text.replace(f"chat_template: {name}", f"chat_template: {recipe_file.parent / name}")
    recipe = folder / "judged.yaml"
    recipe.write_text(text + CHAT.format(url=url, data=SAMPLE), encoding="utf-8")
    return recipe


def run(recipe: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("FUSELINE_", "PREFECT_", "MLFLOW_"))
    }
    return subprocess.run(
        [*COMMAND, "run", str(recipe)],
        env=own | environment,
        cwd=REPOSITORY,
        capture_output=True,
        timeout=600,
        check=False,
    )


def used_keys(judge: ChatServer) -> set[str]:
    return {key.removeprefix("Bearer ") for key in judge.keys}


@pytest.mark.slow
def test_a_run_leaves_no_secret_anywhere(recipe_file: Path, tmp_path: Path) -> None:
    canaries = make_canaries([*CREDENTIALS, "RECIPES_OWN_KEY"])
    # Prefect's client wants one of its two alone.
    environment = {name: mark for name, mark in canaries.items() if name != "PREFECT_API_KEY"}
    with chat_server(lambda body, number: "Rating: [[7]]") as judge, watched_command_lines() as lines:
        recipe = judged_recipe(recipe_file, tmp_path, judge.url)
        done = run(recipe, environment | {"FUSELINE_HOME": str(tmp_path / "home"), "PREFECT_LOGGING_LEVEL": "DEBUG"})
    assert done.returncode == 0, done.stderr[-3000:].decode()
    assert used_keys(judge) == {canaries["RECIPES_OWN_KEY"]}
    assert found_in(done.stdout + done.stderr, canaries) == []
    assert found_in_files(tmp_path, canaries) == []
    assert any(str(recipe).encode() in line for line in lines.seen), "the run's own command line was not seen"
    assert found_in(b"\n".join(lines.seen), canaries) == []
    kinds = {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert {"mlflow.db", "prefect.db", "manifest.json", "report.html", "model.safetensors"} <= kinds


def failing_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["fuseline", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("place", ["store", "refused by the store", "MLflow", "Prefect", "judge"])
def test_errors_show_no_secret(
    place: str,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    canaries = make_canaries([*CREDENTIALS, "RECIPES_OWN_KEY", "IN_AN_ADDRESS"])
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))
    for name, mark in canaries.items():
        monkeypatch.setenv(name, mark)
    with_password = f"http://me:{canaries['IN_AN_ADDRESS']}@127.0.0.1:{free_ports(1)[0]}"
    # What an endpoint says of a wrong key often quotes it.
    refusal = (401, {"error": {"message": f"Incorrect key {canaries['RECIPES_OWN_KEY']}"}}, {})
    with chat_server(lambda body, number: refusal) as judge:
        recipe = judged_recipe(recipe_file, tmp_path, judge.url)
        arguments = ["run", str(recipe)]
        if place == "store":
            monkeypatch.setenv("FUSELINE_STORE", "s3://fuseline/x")
            monkeypatch.setenv("FUSELINE_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
        elif place == "refused by the store":
            monkeypatch.setenv("FUSELINE_STORE", "s3://fuseline/x")
            bucket = request.getfixturevalue("s3_bucket")
            monkeypatch.setenv("FUSELINE_S3_ENDPOINT_URL", bucket["FUSELINE_S3_ENDPOINT_URL"])
        elif place == "MLflow":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)
        elif place == "Prefect":
            monkeypatch.setenv("PREFECT_API_URL", f"{with_password}/api")
        else:
            arguments = ["mt-bench", "judge", "--data", str(SAMPLE), "--endpoint", judge.url]
            arguments += ["--key-variable", "RECIPES_OWN_KEY", str(SAMPLE / "model_answer" / "alpha.jsonl")]
        status = failing_command(monkeypatch, *arguments)
    printed = capfd.readouterr()
    assert status == 2, printed.err
    assert printed.err.count("fuseline: ") == 1 and "Traceback" not in printed.err
    assert found_in((printed.out + printed.err).encode(), canaries) == []
    assert found_in_files(tmp_path, canaries) == []
    if place == "judge":
        assert used_keys(judge) == {canaries["RECIPES_OWN_KEY"]}


def variables_in_the_tree() -> set[str]:
    """Return every name of a credential that stands in a text of the product's code, containers or pages."""
    found = set()
    for folder in ("fusion_core", "tasks", "flows", "deployments", "docker"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            texts = [
                node.value
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Constant)
            ]
            found |= {name for text in texts if isinstance(text, str) for name in re.findall(r"[A-Z][A-Z0-9_]+", text)}
    others = [*(REPOSITORY / "docker").glob("*.yaml"), *(REPOSITORY / "deployments").rglob("*.sbatch")]
    others += [
        *(REPOSITORY / "deployments" / "kubernetes").iterdir(),
        *(REPOSITORY / "docs").glob("*.md"),
        REPOSITORY / "README.md",
    ]
    for path in others:
        found |= set(re.findall(r"[A-Z][A-Z0-9_]+", path.read_text(encoding="utf-8")))
    return {name for name in found if VARIABLE.fullmatch(name) or ADDRESS.fullmatch(name)}


def test_the_list_of_credential_variables_is_complete() -> None:
    read = variables_in_the_tree()
    assert read - set(CREDENTIALS) - SERVERS_OWN == set()
    assert SERVERS_OWN - read == set(), "a server's secret that nothing names any more"
    secret = {
        PREFIX + name.upper()
        for name, one in Settings.model_fields.items()
        if SecretStr in getattr(one.annotation, "__args__", (one.annotation,))
    }
    assert secret and secret <= set(CREDENTIALS)
    assert JudgeConfig.model_fields["key_variable"].default in CREDENTIALS
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    assert {name for name in CREDENTIALS if f"`{name}`" not in page} == set()


def test_the_list_has_what_the_libraries_read() -> None:
    import inspect

    import botocore.credentials
    import huggingface_hub.utils._auth
    import mlflow.environment_variables
    from prefect.settings.models.api import APISettings

    aws = botocore.credentials.EnvProvider
    assert {aws.ACCESS_KEY, aws.SECRET_KEY, aws.TOKENS[-1]} <= set(CREDENTIALS)
    hub = re.findall(r"\"(\w+TOKEN)\"", inspect.getsource(huggingface_hub.utils._auth))
    assert hub and set(hub) <= set(CREDENTIALS)
    prefect = {
        f"PREFECT_API_{name.upper()}"
        for name, one in APISettings.model_fields.items()
        if "Secret" in str(one.annotation)
    }
    assert prefect and prefect <= set(CREDENTIALS)
    tracking = {
        one.name
        for one in vars(mlflow.environment_variables).values()
        if VARIABLE.fullmatch(str(getattr(one, "name", "")))
    }
    assert {name for name in tracking if name.startswith("MLFLOW_TRACKING")} <= set(CREDENTIALS)


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    canaries = make_canaries(["KEY"])
    mark = canaries["KEY"]
    for number, start in enumerate(("", "u", "us", "user:")):
        (tmp_path / f"{number}").write_bytes(b"\0" + base64.b64encode(f"{start}{mark} and more".encode()))
    (tmp_path / "plain").write_text(f"AWS {mark}.")
    (tmp_path / "other").write_text("canary")
    (tmp_path / "allowed").write_text(mark)
    assert found_in_files(tmp_path, canaries, ["allowed"]) == [f"{name}: KEY" for name in ("0", "1", "2", "3", "plain")]
