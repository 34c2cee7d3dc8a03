"""``fuseline merge`` on checkpoint folders that no recipe knows, from options and from mergekit's YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from flows.command_line import main
from flows.merge import merge
from fusion_core.errors import ConfigError
from tests.flows.conftest import STORIES


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The pivot with every weight moved by 0.5."""
    folder = tmp_path / "target"
    folder.mkdir()
    for path in STORIES.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    moved = {name: tensor + 0.5 for name, tensor in load_file(STORIES / "model.safetensors").items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["fuseline", "merge", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def mean_move(folder: Path) -> float:
    pivot, merged = load_file(STORIES / "model.safetensors"), load_file(folder / "model.safetensors")
    return float(torch.stack([(merged[name] - pivot[name]).mean() for name in pivot]).mean())


def test_options_choose_the_method_and_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: Path
) -> None:
    out = tmp_path / "merged"
    options = ["--method", "task_arithmetic", "--set", "scaling_coefficient=0.5", "--out", out]
    assert run(monkeypatch, STORIES, target, *options) == 0
    assert mean_move(out) == pytest.approx(0.25, abs=1e-4)
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "task_arithmetic" in card
    assert "target" in card
    assert (out / "merge_report.json").is_file()


def test_mergekits_yaml_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: Path) -> None:
    config = tmp_path / "mergekit.yaml"
    config.write_text(
        f"merge_method: task_arithmetic\nbase_model: {STORIES}\nmodels:\n  - model: {target}\n"
        "    parameters: {weight: 0.5}\n",
        encoding="utf-8",
    )
    assert run(monkeypatch, "--mergekit-config", config, "--out", tmp_path / "merged") == 0
    assert mean_move(tmp_path / "merged") == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--mergekit-config"),
        (["--set", "density"], "no value"),
        (["--method", "varmm"], "method"),
        (["--set", "select_top_k=0.5"], "select_top_k"),
    ],
)
def test_a_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    target: Path,
    arguments: list[str],
    words: str,
) -> None:
    models = [STORIES, target, "--out", tmp_path / "merged"] if arguments else []
    assert run(monkeypatch, *models, *arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.strip().splitlines()) == 1
    assert not (tmp_path / "merged").exists()


def test_the_card_appears_with_the_merge_or_nothing_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, target: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(monkeypatch, STORIES, target, "--out", "~/merged") == 0
    assert {"README.md", "merge_report.parquet"} <= {path.name for path in (tmp_path / "merged").iterdir()}

    def fill_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusion_core.merging.card.merge_card", fill_disk)
    assert run(monkeypatch, STORIES, target, "--out", tmp_path / "new" / "merged") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "unread"),
    [
        (["recipe.yaml", "--method", "ties"], "--method"),
        (["recipe.yaml", "--set", "density=0.2", "--out", "merged"], "--out, --set"),
        (["--mergekit-config", "mergekit.yaml", "--method", "ties"], "--method"),
        (["pivot", "target", "--mergekit-config", "mergekit.yaml"], "PIVOT"),
    ],
)
def test_what_would_not_be_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], unread: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert f"{unread} would not be read" in " ".join(capsys.readouterr().err.split())


def test_the_flow_refuses_a_recipe_that_merges_nothing(recipe_file: Path, tmp_path: Path) -> None:
    joint = tmp_path / "small.yaml"
    joint.write_text(recipe_file.read_text(encoding="utf-8") + "strategy: joint\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="merges nothing"):
        merge.fn(str(joint))
