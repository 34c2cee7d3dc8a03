"""What is written to make a version again runs nothing but its three commands, whatever the lineage says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fusion_core.errors import FusionError, TrackingError
from tasks.code_version import CodeVersion
from tasks.registry import reproduce
from tasks.registry.lineage_record import FileOrigin, LineageRecord, ModelOrigin
from tasks.registry.reproduce import write_reproduction
from tests.messages import one_sentence

HOSTILE = [
    "$(touch owned)",
    "`touch owned`",
    "x'; touch owned; '",
    'x"; touch owned; "',
    "x\ntouch owned\n",
    "x\r\ntouch owned",
    "x\u2028touch owned\x0btouch owned\x85touch owned",
    "; touch owned #",
    "\\\ntouch owned",
    "&& touch owned",
    "--help",
]
RECIPE = "name: mine\npivot: {name: small, path: models/small}\nsources: [{name: coder, path: models/coder}]\n"
# Stands in for the programs that the script calls: says its arguments, and installs and checks out nothing.
END_OF_CALL = "\1"
PROGRAM = f'#!/bin/sh\nprintf \'%s\\0\' "$(basename "$0")" "$@" \'{END_OF_CALL}\' >> "$SAID"\n'


def record(text: str, template: str | None = None, **changed: object) -> LineageRecord:
    """A lineage with a text in every place that is free text."""
    models = tuple(
        ModelOrigin(
            name=name, role=role, origin=text, revision=text, digest=text, tokenizer_digest=text, dtype=text,
            chat_template=template,
        )
        for name, role in (("small", "pivot"), ("coder", "source"))
    )  # fmt: skip
    code = CodeVersion(fuseline=text, commit=None, dirty=True, files=text)
    made = LineageRecord(
        name=text, address=text, dataset_digest=text, models=models, stages=(), recipe=RECIPE, code=code,
        files=(FileOrigin(origin=text, revision=None, digest=text, domain=text),),
        packages={"torch": "2.13.0+cpu", "own": "0+unknown"}, device=text,
    )  # fmt: skip
    return made.model_copy(update=changed)


def write(made: LineageRecord, folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "1") -> Path:
    monkeypatch.setenv("FUSELINE_HOME", str(folder.parent / "home"))
    monkeypatch.setattr(reproduce, "read_version", lambda *_: None)
    monkeypatch.setattr(reproduce, "read_record", lambda *_: made)
    write_reproduction(version, version, folder)
    return folder


def run_script(folder: Path, place: Path) -> list[list[str]]:
    """Run the script with stand-ins for its programs and return the calls they were given."""
    place.mkdir()
    for name in ("git", "pip", "fuseline"):
        (place / name).write_text(PROGRAM)
        (place / name).chmod(0o755)
    environment = {"PATH": f"{place}:/usr/bin:/bin", "SAID": str(place / "said")}
    subprocess.run(["sh", str(folder / "reproduce.sh")], cwd=place, env=environment, check=True, timeout=20)
    said = (place / "said").read_bytes().decode().removesuffix(f"\0{END_OF_CALL}\0")
    return [call.split("\0") for call in said.split(f"\0{END_OF_CALL}\0")]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_script_from_a_hostile_lineage_runs_its_own_commands_alone(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(record(text), tmp_path / text.replace("/", "-"), monkeypatch, version=text)
    calls = run_script(folder, tmp_path / "place")
    assert calls == [["pip", "install", "-r", "requirements.txt"], ["fuseline", "run", str(folder / "recipe.yaml")]]
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize(
    "changed",
    [
        {"packages": {"torch": "2\n--index-url http://127.0.0.1/"}},
        {"packages": {"--index-url=http://127.0.0.1/x": "2"}},
        {"packages": {"torch @ http://127.0.0.1/x.whl #": "2"}},
        {"packages": {"torch": "2; touch owned"}},
        {"code": CodeVersion(fuseline="1", commit="--orphan=x", dirty=False, files="")},
        {"code": CodeVersion(fuseline="1", commit="$(touch owned)", dirty=False, files="")},
        {"recipe": "name: mine"},
        {"recipe": "name: mine\npivot: 3\nsources: 4"},
        {"recipe": "- 1"},
        {"recipe": "name: ["},
    ],
)
def test_what_would_steer_a_program_is_refused_and_nothing_is_written(
    changed: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FusionError) as error:
        write(record("plain", "{{ messages }}", **changed), tmp_path / "again", monkeypatch)
    one_sentence(error)
    assert not (tmp_path / "again").exists()


def test_a_commit_is_checked_out_and_released_versions_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = CodeVersion(fuseline="1", commit="a" * 40, dirty=False, files="")
    folder = write(record("plain", code=code), tmp_path / "again", monkeypatch)
    assert run_script(folder, tmp_path / "place")[0] == ["git", "checkout", "a" * 40]
    # A version that names no release is asked for by nobody.
    assert (folder / "requirements.txt").read_text() == "torch==2.13.0\nown==0\n"


def test_a_template_is_written_as_it_is_and_never_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ cycler.__init__.__globals__.os.system('touch owned') }}\n{% for i in range(10**12) %}"
    monkeypatch.chdir(tmp_path)
    folder = write(record("plain", template), tmp_path / "again", monkeypatch)
    for name in ("small", "coder"):
        assert (folder / f"chat_template_{name}.jinja").read_text() == template
        assert f"chat_template: chat_template_{name}.jinja" in (folder / "recipe.yaml").read_text()
    assert not list(tmp_path.rglob("owned"))


def test_models_without_a_template_of_the_recipes_get_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(record("plain", None), tmp_path / "again", monkeypatch)
    assert "chat_template" not in (folder / "recipe.yaml").read_text()
    assert {path.name for path in folder.iterdir()} == {"recipe.yaml", "requirements.txt", "reproduce.sh"}


@pytest.mark.parametrize("name", ["../../small", "small/../x", "", "a\nb", os.sep])
def test_a_template_stays_in_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record("plain", "template")
    models = (made.models[0].model_copy(update={"name": name}), made.models[1])
    recipe = json.dumps({"name": "mine", "pivot": {"name": name}, "sources": [{"name": "coder"}]})
    with pytest.raises(TrackingError, match="names a model"):
        write(made.model_copy(update={"models": models, "recipe": recipe}), tmp_path / "again", monkeypatch)
    assert not list(tmp_path.rglob("*.jinja"))
