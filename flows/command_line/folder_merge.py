"""Merging checkpoint folders that no recipe knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.errors import ConfigError, first_line

if TYPE_CHECKING:
    from fusion_core.merge_spec import MergeSpec


def read_merge_options(method: str, settings: list[str]) -> MergeSpec:
    """Turn ``--method`` and the ``name=value`` pairs of ``--set`` into a merge's settings; values are read as YAML."""
    from pydantic import ValidationError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from fusion_core.merge_spec import MergeSpec
    from fusion_core.recipes import explain

    values: dict[str, object] = {"method": method}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting} has no value; write it as --set name=value.")
        if name in values:
            raise ConfigError(f"--set {setting}: {name} is given twice; give it once.")
        try:
            values[name] = YAML(typ="safe", pure=True).load(value)
        except (YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"--set {setting}: its value cannot be read ({first_line(error)}).") from error
    try:
        return MergeSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"These options cannot be used: {explain(error)}") from error


def refuse_unread(why: str, **given: object) -> None:
    """Refuse what somebody gave and this way of merging would not read; PIVOT is an argument, the rest are options."""
    unread = [name if name.isupper() else f"--{name}" for name, value in given.items() if value]
    if unread:
        raise ConfigError(f"{', '.join(unread)} would not be read: {why}; leave it out.")


def merge_folders(pivot: Path, targets: list[Path], spec: MergeSpec, out: Path | None) -> None:
    """Merge checkpoint folders into a new one."""
    from fusion_core.merging import MergeReport, merge_checkpoints
    from fusion_core.merging.card import CARD_NAME, merge_card
    from fusion_core.progress import show_progress

    if out is None:
        raise ConfigError("Say where the merged checkpoint goes: add --out FOLDER.")

    def describe(folder: Path, report: MergeReport) -> None:
        (folder / CARD_NAME).write_text(merge_card(report), encoding="utf-8")
        report.save(folder)

    with show_progress("merge", "tensors") as progress:
        merge_checkpoints(pivot, targets, out, spec, progress=progress, complete=describe)
    print(f"merged: {out}")
