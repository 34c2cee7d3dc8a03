"""A user's mistakes: one plain sentence that names file, field and remedy, exit status 2, and nothing written."""

from __future__ import annotations

import os
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
        ("top_k: 8", "top_k: true", ("extraction.top_k", "true")),
        ("{top_k: 8}", "[8]", ("`extraction`", "mapping of settings")),
        ("epochs: 1", "epochs: 1, weight_decay: .inf", ("training.weight_decay", "finite")),
        ("epochs: 1", "epochs: 1, adam_betas: [0.9, 1.0]", ("training.adam_betas", "less than 1")),
        ("epochs: 1", "epochs: 1, seed: 99999999999999999999", ("training.seed", "less than")),
        ("path: code.jsonl", "path: ~nobody-of-this-name/code.jsonl", ("`path`", "~nobody")),
        ("name: bytes-700", "name: target-bytes-400", ("target-bytes-400", "the run makes")),
        ("name: bytes-700", "name: fused", ("fused", "the run makes")),
        ("extraction:", "registry: {model_name: a/b}\nextraction:", ("registry.model_name", "letters")),
        ("name: small", 'name: "small\\n"', ("`name`", "letters")),
        ("name: small", "name: &itself [*itself]", ("aliases",)),
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


def test_aliases_that_unfold_without_end(run: Run, recipe: Path) -> None:
    lists = "".join(f"  - &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 12))
    recipe.write_text(f"{recipe.read_text(encoding='utf-8')}\nmany:\n  - &l0 [a]\n{lists}", encoding="utf-8")
    status, message = run("plan", recipe)
    assert_plain(status, message, recipe.name, "aliases")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", "", ("bytes-700", "safetensors")),
        ("config.json", "{", ("bytes-700", "config.json")),
        ("config.json", '{"model_type": "nosuch"}', ("bytes-700", "config.json")),
        ("tokenizer.json", "{", ("bytes-700", "tokenizer.json")),
        ("chat_template.jinja", "{% for x in %}", ("bytes-700", "chat template")),
        ("chat_template.jinja", "{{ raise_exception('no') }}", ("bytes-700", "chat template")),
    ],
)
def test_broken_model_folder_is_named_before_anything_is_written(
    run: Run, recipe: Path, tmp_path: Path, file: str, content: str, words: tuple[str, ...]
) -> None:
    (recipe.parent / "bytes-700" / file).write_text(content, encoding="utf-8")
    status, message = run("run", recipe)
    assert_plain(status, message, *words)
    assert not (tmp_path / "home").exists()


def test_tensors_of_another_shape_than_the_config_says(run: Run, recipe: Path) -> None:
    spoil(recipe.parent / "bytes-700" / "config.json", '"hidden_size": 64', '"hidden_size": 128')
    assert run("prepare", recipe) == (0, "")
    status, message = run("extract", recipe, "--model", "bytes-700")
    assert_plain(status, message, "bytes-700", "tensor", "config.json", "128")


def test_data_that_is_a_pipe_is_not_waited_for(run: Run, recipe: Path) -> None:
    (recipe.parent / "code.jsonl").unlink()
    os.mkfifo(recipe.parent / "code.jsonl")
    status, message = run("run", recipe)
    assert_plain(status, message, "code.jsonl", "pipe")


@pytest.mark.parametrize(("variable", "server"), [("MLFLOW_TRACKING_URI", "MLflow"), ("PREFECT_API_URL", "Prefect")])
def test_server_that_does_not_answer(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch, variable: str, server: str
) -> None:
    monkeypatch.setenv(variable, "http://someone:secret@127.0.0.1:9")
    status, message = run("run", recipe)
    assert_plain(status, message, server, variable)
    assert "secret" not in message


def test_file_where_a_folder_should_be(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("FUSELINE_STORE", str(tmp_path / "store"))
    status, message = run("prepare", recipe)
    assert_plain(status, message, str(tmp_path / "file"))


def test_home_of_a_user_that_is_not_there(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_HOME", "~no-such-user/fuseline")
    status, message = run("prepare", recipe)
    assert_plain(status, message, "begins with ~")


@pytest.mark.parametrize("content", ["[", "models: 3\nmerge_method: [ties]", "merge_method: ties\nslices: [{}]"])
def test_mergekit_file_that_is_none(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "merge.yaml").write_text(content, encoding="utf-8")
    status, message = run("merge", "--mergekit-config", tmp_path / "merge.yaml", "--out", tmp_path / "out")
    assert_plain(status, message, "merge.yaml")


def test_merge_of_a_folder_whose_index_names_no_file(run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = recipe.parent / "bytes-700"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}', encoding="utf-8")
    status, message = run("merge", folder, folder, "--out", tmp_path / "out")
    assert_plain(status, message, "bytes-700", "index")


def test_merge_into_another_precision_needs_a_config_that_can_be_read(run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = recipe.parent / "bytes-700"
    (folder / "config.json").write_text("[", encoding="utf-8")
    status, message = run("merge", folder, folder, "--set", "dtype=bfloat16", "--out", tmp_path / "out")
    assert_plain(status, message, "config.json", "JSON")
    assert not (tmp_path / "out").exists()


def test_setting_that_is_no_yaml(run: Run, tmp_path: Path) -> None:
    status, message = run("merge", tmp_path, tmp_path, "--set", "density=[", "--out", tmp_path / "out")
    assert_plain(status, message, "density")


def test_setting_that_is_given_twice(run: Run, tmp_path: Path) -> None:
    twice = ("--set", "density=0.5", "--set", "density=0.6")
    status, message = run("merge", tmp_path, tmp_path, *twice, "--out", tmp_path / "out")
    assert_plain(status, message, "density is given twice")


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
        ('{"domain": "\\ud800", "messages": []}', ("turn",)),
        (
            '{"domain": "\\ud800", "question": "a", "answer": "b"}',
            ("domain", "printable"),
        ),
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


def test_interruption_says_how_to_go_on(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusion_core.recipes.load_recipe", interrupt)
    status, message = run("plan", recipe)
    assert status == 130
    assert "run the same command again" in message
