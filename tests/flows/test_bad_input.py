"""A user's mistakes: one plain sentence that names file, field and remedy, exit status 2, and nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.command_line import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs the command line and gives exit status and standard error."""
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "home"))

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["fuseline", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def recipe(recipe_file: Path, tmp_path: Path) -> Path:
    """A copy of the small recipe with its data and models, to be spoilt."""
    shutil.copytree(recipe_file.parent, tmp_path / "recipe")
    return tmp_path / "recipe" / recipe_file.name


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def assert_plain(status: int, message: str, *words: str) -> None:
    assert status == 2
    assert message.startswith("fuseline: ")
    assert len(message.strip().splitlines()) == 1, message
    assert "Traceback" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("top_k: 8", "top_q: 8", ("extraction.top_q", "not a known setting")),
        ("top_k: 8", "top_k: many", ("extraction.top_k", "'many'")),
        ("top_k: 8", "top_k: -3", ("extraction.top_k", "-3")),
        ("name: bytes-700", "name: bytes-400", ("bytes-400", "name of its own")),
        ("path: bytes-700", "path: bytes-400", ("bytes-700", "same model")),
        ("path: bytes-700", "path: missing", ("bytes-700", "does not exist", "path")),
        ("path: code.jsonl", "path: none.jsonl", ("none.jsonl",)),
        ("name: small", "name: ''", ("name",)),
        ("strategy: pairwise", "strategy: both", ("strategy",)),
        ("pivot:", "pivot: [", ("YAML",)),
    ],
)
def test_spoilt_recipe(run: Run, recipe: Path, tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    if "strategy" in old:
        spoil(recipe, "name: small", "name: small\nstrategy: pairwise")
    spoil(recipe, old, new)
    status, message = run("run", recipe)
    assert_plain(status, message, *words)
    assert not (tmp_path / "home" / "store").exists()


def test_source_equal_to_the_pivot(run: Run, recipe: Path) -> None:
    stories = next(line.split("path: ")[1].split(",")[0] for line in recipe.read_text().splitlines() if "pivot" in line)
    spoil(recipe, "{name: bytes-700, path: bytes-700}", f"{{name: again, path: {stories}}}")
    status, message = run("run", recipe)
    assert_plain(status, message, "again", "the pivot")


def test_copy_of_a_source_under_another_name_is_found_by_its_weights(run: Run, recipe: Path) -> None:
    shutil.copytree(recipe.parent / "bytes-400", recipe.parent / "copy")
    spoil(recipe, "path: bytes-700", "path: copy")
    status, message = run("run", recipe)
    assert_plain(status, message, "bytes-700", "same weights", "bytes-400")


def test_missing_recipe(run: Run, tmp_path: Path) -> None:
    status, message = run("plan", tmp_path / "none.yaml")
    assert_plain(status, message, "none.yaml", "does not exist")


def test_model_folder_without_safetensors(run: Run, recipe: Path) -> None:
    (recipe.parent / "bytes-700" / "model.safetensors").unlink()
    status, message = run("run", recipe)
    assert_plain(status, message, "bytes-700", "safetensors")


def test_tokenizer_without_a_chat_template(run: Run, recipe: Path) -> None:
    spoil(recipe, ", chat_template: template.jinja", "")
    status, message = run("run", recipe)
    assert_plain(status, message, "stories", "chat_template")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [', ("JSON",)),
        ('{"messages": []}', ("turn",)),
        ('{"messages": [{"role": "user", "content": "hello"}]}', ("assistant",)),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', ("user",)),
        ('{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}]}', ("string of text",)),
    ],
)
def test_too_many_malformed_dialogues(
    run: Run, recipe: Path, tmp_path: Path, line: str, words: tuple[str, ...]
) -> None:
    with (recipe.parent / "code.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n" + line + "\n")
    status, message = run("prepare", recipe)
    assert_plain(status, message, "code.jsonl", "max_quarantined", *words)
    assert not list((tmp_path / "home" / "store").rglob("manifest.json"))


def test_few_malformed_dialogues_are_set_aside_and_counted(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(recipe, "held_out_share: 0.4", "held_out_share: 0.4\n  max_quarantined: 0.2")
    with (recipe.parent / "code.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"messages": []}\n')
    status, message = run("prepare", recipe)
    assert (status, message) == (0, "")
    quarantine = next((tmp_path / "home" / "store").rglob("quarantine.jsonl"))
    assert "code.jsonl" in quarantine.read_text(encoding="utf-8")


def test_a_stage_alone_says_what_must_come_before_it(run: Run, recipe: Path) -> None:
    status, message = run("fuse", recipe)
    assert_plain(status, message, "fuseline prepare")


def test_unknown_environment_variable(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_STROE", "/nowhere")
    status, message = run("plan", recipe)
    assert_plain(status, message, "FUSELINE_STROE")
