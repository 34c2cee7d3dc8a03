"""Starting and stopping where files of the stack are broken, or two commands meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_core.errors import FusionError
from tasks.stack.control import _exports, start_stack, stop_stack
from tasks.stack.folder import StackFolder, only_command
from tasks.stack.ports import load_or_choose_ports
from tasks.stack.processes import find_process, start_process


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


def test_exports_are_read_by_a_shell_as_they_are() -> None:
    odd = '/it\'s $HOME `id`; "x"'
    said = subprocess.run(["sh", "-c", _exports({"PLACE": odd}) + 'printf %s "$PLACE"'], capture_output=True, text=True)
    assert said.stdout == odd
