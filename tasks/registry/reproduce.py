"""A registered version made again: its recipe with everything pinned, and the commands."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from fusion_core.config import NAME_PATTERN
from fusion_core.errors import ConfigError, TrackingError
from fusion_core.recipes import load_recipe, read_mapping
from tasks.registry.lineage_record import FileOrigin, LineageRecord, ModelOrigin
from tasks.registry.versions import read_record, read_version
from tasks.resolve import resolve_fusion
from tasks.runs.tracking import Tracking
from tasks.store.local_files import disk_errors
from tasks.store.workplace import open_workplace

RECIPE_NAME = "recipe.yaml"
PACKAGES_NAME = "requirements.txt"
COMMANDS_NAME = "reproduce.sh"
PACKAGE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
PACKAGE_VERSION = re.compile(r"[0-9][A-Za-z0-9.!_-]*")
COMMIT = re.compile(r"[0-9a-f]{7,64}")


class Reproduction(BaseModel):
    """What was written, and the address that running it gives."""

    model_config = ConfigDict(frozen=True)

    recipe: Path
    commands: Path
    address: str
    command: str


def write_reproduction(model_name: str, version: str, folder: Path) -> Reproduction:
    """Write recipe, package versions and commands that make a registered version again.

    Raises
    ------
    ConfigError
        There is no such version, Fuseline did not register it, or the folder holds another recipe.
    TrackingError
        The version's run is gone from MLflow.
    """
    workplace = open_workplace()
    tracking = Tracking(workplace.settings, "fuseline")
    record = read_record(tracking, read_version(tracking, model_name, version))
    recipe, commands = folder / RECIPE_NAME, folder / COMMANDS_NAME
    text, packages = _recipe(record, folder), _packages(record)
    if recipe.exists() and recipe.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{recipe} is there already and says something else; give another --out.")
    command = f"fuseline run {shlex.quote(str(recipe))}"
    script = _commands(record, model_name, version, command)
    with disk_errors(f"Writing to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for model in record.models:
            if model.chat_template is not None:
                _template(folder, model.name).write_text(model.chat_template, encoding="utf-8")
        recipe.write_text(text, encoding="utf-8")
        (folder / PACKAGES_NAME).write_text("".join(f"{line}\n" for line in packages), encoding="utf-8")
        commands.write_text(script, encoding="utf-8")
    return Reproduction(recipe=recipe, commands=commands, address=record.address, command=command)


def check_reproduction(made: Reproduction, model_name: str, version: str) -> list[str]:
    """Resolve the written recipe here and now and say what is not as it was; empty when the address is the same."""
    tracking = Tracking(open_workplace().settings, "fuseline")
    record = read_record(tracking, read_version(tracking, model_name, version))
    fusion = resolve_fusion(load_recipe(made.recipe))
    if fusion.merged() == record.address:
        return []
    differences = [
        f"model {model.name} at {origin.origin} is not what it was"
        for model, origin in zip((fusion.pivot, *fusion.sources), record.models, strict=True)
        if model.digest != origin.digest
    ]
    if fusion.dataset_digest != record.dataset_digest:
        differences.append("the data files or their preparation are not what they were")
    return differences or ["this version of Fuseline computes a stage in another way; check out the commit above"]


def _recipe(record: LineageRecord, folder: Path) -> str:
    values = read_mapping(record.recipe, Path(RECIPE_NAME))
    try:
        entries = {entry["name"]: entry for entry in (values["pivot"], *values["sources"])}
        for model in record.models:
            if model.chat_template is not None:
                entries[model.name]["chat_template"] = _template(folder, model.name).name
    except (KeyError, TypeError) as error:
        raise TrackingError("The lineage that MLflow keeps has a recipe without its models; run it again.") from error
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(values, text)
    return text.getvalue()


def _template(folder: Path, model: str) -> Path:
    if not NAME_PATTERN.match(model):
        raise TrackingError(
            f"The lineage that MLflow keeps names a model {model[:80]!r}, which no recipe does; run it again."
        )
    return folder / f"chat_template_{model}.jinja"


def _packages(record: LineageRecord) -> list[str]:
    packages = []
    for name, number in record.packages.items():
        # What follows a plus names a build that no package index has.
        released = number.partition("+")[0]
        if not number[:1].isdigit():
            continue
        # pip takes options from this file too, such as another index to install from.
        if not PACKAGE_NAME.fullmatch(name) or not PACKAGE_VERSION.fullmatch(released):
            raise TrackingError(
                f"The lineage that MLflow keeps names a package {name[:80]!r}, which is none; run it again."
            )
        packages.append(f"{name}=={released}")
    return packages


def _place(one: ModelOrigin | FileOrigin) -> str:
    return f"{one.origin} ({one.revision or f'SHA-256 {one.digest[:16]}'})"


def _commands(record: LineageRecord, model_name: str, version: str, command: str) -> str:
    code = record.code
    lines = [
        "#!/bin/sh",
        f"# Makes version {version} of {model_name} again; it was made on {record.device}.",
        f"# The fused model's address is {record.address}",
        f"# Fuseline: {code}",
    ]
    if code.commit is not None:
        if not COMMIT.fullmatch(code.commit):
            raise TrackingError(f"The lineage that MLflow keeps names a commit {code.commit[:80]!r}; run it again.")
        lines.append(f"git checkout {shlex.quote(code.commit)}")
    if code.dirty or code.commit is None:
        lines.append(f"# The code then had no commit of its own; the digest of its files was {code.files}")
    places = [_place(one) for one in record.models] + [_place(one) for one in record.files]
    lines += [f"# It reads {place}" for place in places]
    # What a record holds stays in its line: after a line break a comment would be a command.
    lines = [" ".join(line.splitlines()) for line in lines]
    return "\n".join([*lines, f"pip install -r {PACKAGES_NAME}", command]) + "\n"
