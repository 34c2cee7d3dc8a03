"""Which errors end the command line with which status."""

from __future__ import annotations

import pytest

import flows.command_line as command_line
from fusion_core.errors import ConfigError, TrainingError, TrainingInterruptedError


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError, 2), (TrainingError, 2), (TrainingInterruptedError, command_line.PREEMPTED)]
)
def test_a_preempted_training_may_be_told_from_a_mistake(error, status, monkeypatch, capsys, tmp_path):
    def application() -> None:
        raise error("What happened.")

    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    monkeypatch.setattr(command_line, "application", application)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == status
    assert capsys.readouterr().err == "fuseline: What happened.\n"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, "COMMAND"),
        (["status"], 1, "`fuseline up` starts one"),
        (["plan", "absent.yaml"], 2, "absent.yaml"),
        (["plan", "--no-such-option"], 2, "No such option"),
        (["no-such-command"], 2, "No such command"),
        (["promote", "any", "--json"], 2, "--json belongs to --dry-run"),
    ],
)
def test_each_status_means_what_the_page_says(arguments, status, words, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["fuseline", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert (stopped.value.code or 0) == status
    printed = capsys.readouterr()
    assert words in printed.out + printed.err
    assert "Traceback" not in printed.err


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["fuseline", "plan", "any.yaml"])
    monkeypatch.setattr("fusion_core.recipes.load_recipe", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == command_line.INTERRUPTED
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_complete_in_a_shell(shell, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    monkeypatch.setenv("_FUSELINE_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", "fuseline lin")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "fuseline lin")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    with pytest.raises(SystemExit):
        command_line.application(prog_name="fuseline")
    assert "lineage" in capsys.readouterr().out
